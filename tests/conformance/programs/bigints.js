// A program under test in JavaScript: exact integers by BigInt, JSON lines in and out.
"use strict";
const readline = require("readline");

class Refused extends Error {}
class Skipped extends Error {}

// --- values ---------------------------------------------------------------------------------

const EXACT = 2n ** 53n;
const integer = (v) => BigInt(v);
const written = (n) => (n > EXACT || n < -EXACT ? n.toString() : Number(n));
const tensor = (t) => ({ shape: t.shape, data: t.data.map(integer) });
const int = (shape, data) => ({ dtype: "int", shape, data: data.map(written) });
const floorDivide = (n, d) => (n < 0n && n % d !== 0n ? n / d - 1n : n / d);
const bitLength = (n) => (n === 0n ? 0 : n.toString(2).length);

function round(n, d, mode) {
  const lower = floorDivide(n, d);
  const twice = 2n * (n - lower * d); // compared with d: below, at or above a half
  if (twice === 0n || mode === "floor") return lower;
  if (mode === "ceil") return lower + 1n;
  if (mode === "toward_zero") return n < 0n ? lower + 1n : lower;
  if (mode === "away_from_zero") return n < 0n ? lower : lower + 1n;
  if (twice !== d) return twice > d ? lower + 1n : lower;
  const up = {
    half_even: lower % 2n !== 0n,
    half_up: true,
    half_down: false,
    half_away: n > 0n,
    half_toward_zero: n < 0n,
  };
  return up[mode] ? lower + 1n : lower;
}

function ends({ bits, signed, narrow }) {
  if (bits < 1 || bits > 32 || (narrow && bits === 1)) throw new Refused("invalid_parameter");
  const b = BigInt(bits);
  const less = narrow ? 1n : 0n;
  return signed ? [-(2n ** (b - 1n)) + less, 2n ** (b - 1n) - 1n] : [0n, 2n ** b - 1n - less];
}

// What the specification asks, in its order.
function check(holds, code) {
  if (!holds) throw new Refused(code);
}
const fits = (n) => n === BigInt.asIntN(64, n);

function parameter(t, axes) {
  check(t.shape.length === axes, "shape_mismatch");
  check(t.data.length > 0, "invalid_parameter");
  const read = tensor(t);
  check(read.data.every(fits), "out_of_range");
  return read;
}

function batch(t) {
  check(t.shape.length >= 2 && t.data.length > 0, "shape_mismatch");
  return tensor(t);
}

// --- operations -----------------------------------------------------------------------------

const operations = {
  round_ratio({ numerator, denominator, rounding }) {
    const d = integer(denominator);
    if (d <= 0n) throw new Refused("invalid_parameter");
    const { shape, data } = tensor(numerator);
    return { rounded: int(shape, data.map((n) => round(n, d, rounding))) };
  },

  integer_format(format) {
    const [low, high] = ends(format);
    return { q_min: written(low), q_max: written(high), levels: written(high - low + 1n) };
  },

  check_codes({ codes, ...format }) {
    const [low, high] = ends(format);
    const { shape, data } = tensor(codes);
    if (data.some((q) => q < low || q > high)) throw new Refused("out_of_range");
    return { codes: int(shape, data) };
  },

  requantize_shift({ acc, shift, offset, zero_point, rounding, ...format }) {
    const [low, high] = ends(format);
    check(shift >= 0 && shift <= 62, "invalid_parameter");
    check(offset.shape.length < 2, "shape_mismatch");
    check(offset.data.length > 0 && fits(integer(zero_point)), "invalid_parameter");
    const { shape, data } = batch(acc);
    const offsets = tensor(offset).data;
    check(offsets.length === 1 || offsets.length === shape[1], "shape_mismatch");
    check(data.every((v) => fits(v + 1n) && fits(v - 1n)), "out_of_range");
    const inner = shape.slice(2).reduce((a, b) => a * b, 1);
    const codes = data.map((a, i) => {
      const channel = offsets.length > 1 ? Math.floor(i / inner) % shape[1] : 0;
      const q = round(a + offsets[channel], 2n ** BigInt(shift), rounding) + integer(zero_point);
      return q < low ? low : q > high ? high : q;
    });
    return { codes: int(shape, codes) };
  },

  linear({ x, weight, bias, x_zero_point, weight_zero_point }) {
    const w = parameter(weight, 2);
    const out = w.shape[0];
    if (bias !== null) check(bias.shape.join() === `${out}`, "shape_mismatch");
    const b = bias === null ? null : parameter(bias, 1).data;
    const z = tensor(weight_zero_point).data;
    check(z.length === 1 || z.length === out, "shape_mismatch");
    const a = batch(x);
    const [n, width] = a.shape;
    check(a.shape.length === 2 && width === w.shape[1], "shape_mismatch");
    const acc = [];
    for (let s = 0; s < n; s++)
      for (let k = 0; k < out; k++) {
        let sum = b === null ? 0n : b[k];
        for (let i = 0; i < width; i++)
          sum +=
            (w.data[k * width + i] - z[z.length > 1 ? k : 0]) *
            (a.data[s * width + i] - integer(x_zero_point));
        acc.push(sum);
      }
    return { acc: int([n, out], acc) };
  },

  bit_widths({ lo, hi }) {
    const [low, high] = [integer(lo), integer(hi)];
    if (low > high) throw new Refused("invalid_parameter");
    const signed = (v) => bitLength(v >= 0n ? v : -v - 1n) + 1;
    return {
      signed_bits: Math.max(signed(low), signed(high)),
      unsigned_bits: low < 0n ? null : Math.max(1, bitLength(high)),
      span_bits: Math.max(1, bitLength(high - low)),
    };
  },
};

// --- the loop -------------------------------------------------------------------------------

function answer({ operation, arguments: given }) {
  if (operation === "echo") return { result: given };
  try {
    if (!(operation in operations)) throw new Skipped("no such operation");
    return { result: operations[operation](given) };
  } catch (error) {
    if (error instanceof Refused) return { error: error.message };
    if (error instanceof Skipped) return { skipped: error.message };
    throw error;
  }
}

readline.createInterface({ input: process.stdin }).on("line", (line) => {
  const message = JSON.parse(line);
  if (message.cmd === "stop") process.exit(0);
  const about = { protocol: 1, name: "bigints.js", operations: Object.keys(operations) };
  const reply = message.cmd === "start" ? about : { seq: message.seq, ...answer(message) };
  process.stdout.write(JSON.stringify(reply) + "\n");
});
