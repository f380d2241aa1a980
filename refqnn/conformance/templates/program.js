// A program under test in JavaScript: reading and writing is done, each operation is to be written.
//
// Integers arrive as BigInt, floats as Number, tensors as { dtype, shape, data } with data in
// row-major order.  An operation returns its results by name, or throws Refused(code) or
// Skipped(why).
//
//     refqnn conform -- node program.js
"use strict";
const readline = require("readline");

class Refused extends Error {} // invalid_parameter, out_of_range, shape_mismatch, not_a_number
class Skipped extends Error {}

// --- reading and writing ------------------------------------------------------------------------

const EXACT = 2n ** 53n;
const tensor = (shape, data, dtype = "int") => ({ dtype, shape, data });

function readFloat(text) {
  if (text.endsWith("inf")) return text[0] === "-" ? -Infinity : Infinity;
  if (text === "nan") return NaN;
  const [, sign, whole, part, power] =
    /^(-?)0x([0-9a-f]+)\.?([0-9a-f]*)p([+-]?\d+)$/.exec(text);
  const exponent = Number(power) - 4 * part.length;
  const half = Math.trunc(exponent / 2); // in two steps, the first of which is exact
  const value = Number(BigInt("0x" + whole + part)) * 2 ** half * 2 ** (exponent - half);
  return sign ? -value : value;
}

function writtenFloat(x) {
  if (!Number.isFinite(x)) return String(x).toLowerCase().replace("infinity", "inf");
  const view = new DataView(new ArrayBuffer(8));
  view.setFloat64(0, Math.abs(x));
  const bits = view.getBigUint64(0);
  const exponent = Number(bits >> 52n);
  const digits = (bits & (2n ** 52n - 1n)).toString(16).padStart(13, "0");
  const power = exponent ? exponent - 1023 : bits ? -1022 : 0;
  const sign = x < 0 || Object.is(x, -0) ? "-" : "";
  return `${sign}0x${exponent ? 1 : 0}.${digits}p${power < 0 ? "" : "+"}${power}`;
}

// JSON data as JavaScript values; strings of digits are integers.
function read(value) {
  if (typeof value === "number") return BigInt(value);
  if (typeof value === "string") return /^-?\d+$/.test(value) ? BigInt(value) : value;
  if (Array.isArray(value)) return value.map(read);
  if (value === null || typeof value !== "object") return value;
  if ("dtype" in value) {
    const data = value.data.map(value.dtype === "int" ? BigInt : readFloat);
    return { ...value, data };
  }
  return Object.fromEntries(Object.entries(value).map(([name, v]) => [name, read(v)]));
}

// JavaScript values as JSON data: floats in hexadecimal, integers beyond 2^53 as strings.
function written(value) {
  if (typeof value === "bigint") return value > EXACT || value < -EXACT ? `${value}` : Number(value);
  if (typeof value === "number") return writtenFloat(value);
  if (Array.isArray(value)) return value.map(written);
  if (value === null || typeof value !== "object") return value;
  if ("dtype" in value) return { ...value, data: value.data.map(written) };
  return Object.fromEntries(Object.entries(value).map(([name, v]) => [name, written(v)]));
}

// --- operations ---------------------------------------------------------------------------------

const operations = {
@STUBS@
};

// --- the loop -----------------------------------------------------------------------------------

function answer({ operation, arguments: given }) {
  if (operation === "echo") return { result: given };
  try {
    return { result: written(operations[operation](read(given))) };
  } catch (error) {
    if (error instanceof Refused) return { error: error.message };
    if (error instanceof Skipped) return { skipped: error.message };
    throw error;
  }
}

readline.createInterface({ input: process.stdin }).on("line", (line) => {
  const message = JSON.parse(line);
  if (message.cmd === "stop") process.exit(0);
  const about = { protocol: 1, name: "program.js", operations: Object.keys(operations) };
  const reply = message.cmd === "start" ? about : { seq: message.seq, ...answer(message) };
  process.stdout.write(JSON.stringify(reply) + "\n");
});
