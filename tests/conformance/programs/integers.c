/* What was written into the C template (`refqnn vectors template --language c`): operations on
 * 64-bit integers.  Above "operations" stand their helpers; tests/conformance/filling.py puts both in place.
 * Sums that do not fit 64 bits are skipped, never wrapped; parameters that do not fit are refused.
 */
#include <errno.h>

static int64_t plus(int64_t a, int64_t b) {
    if ((b > 0 && a > INT64_MAX - b) || (b < 0 && a < INT64_MIN - b)) skip("beyond 64 bits");
    return a + b;
}

static int64_t times(int64_t a, int64_t b) {
    int64_t limit = INT64_C(1) << 31;
    if (a && b && (a > limit || a < -limit || b > limit || b < -limit) &&
        (llabs(a) > INT64_MAX / llabs(b)))
        skip("beyond 64 bits");
    return a * b;
}

/* --- what the specification asks -------------------------------------------------------------- */

static void check(int holds, const char *code) {
    if (!holds) refuse(code);
}

static void check_integers(const Value *list) {
    for (const Value *c = list->first; c; c = c->next) {
        errno = 0;
        strtoll(c->text, NULL, 10);
        check(!errno, "out_of_range");
    }
}

static Tensor parameter(const Value *a, const char *name, long axes) {
    const Value *v = member(a, name);
    check(member(v, "shape")->count == axes, "shape_mismatch");
    check(member(v, "data")->count > 0, "invalid_parameter");
    check_integers(member(v, "data"));
    return tensor(v);
}

static int64_t *bias_of(const Value *a, long out) { /* NULL where there is none */
    const Value *v = member(a, "bias");
    if (is_null(v)) return NULL;
    const Value *shape = member(v, "shape");
    check(shape->count == 1 && entry(shape, 0) == out, "shape_mismatch");
    check_integers(member(v, "data"));
    return tensor(v).data;
}

static Tensor batch(const Value *a, const char *name, int axes) { /* axes: 0 for any number */
    Tensor x = tensor(member(a, name));
    check(x.ndim >= 2 && x.size > 0 && (!axes || x.ndim == axes), "shape_mismatch");
    return x;
}

static void per_axis(const Value *a, const char *name, long *steps) {
    const Value *list = member(a, name);
    check(list->count == 2, "invalid_parameter");
    for (int i = 0; i < 2; i++)
        check((steps[i] = (long)entry(list, i)) >= 1, "invalid_parameter");
}

/* Accumulators in stages: the loops of two machines.  Any other list of stages is skipped. */

static int64_t int16_saturated(int64_t v) {
    return v > INT16_MAX ? INT16_MAX : v < INT16_MIN ? INT16_MIN : v;
}

static int64_t int32_wrapped(int64_t v) {
    uint32_t low = (uint32_t)v;
    return low > INT32_MAX ? (int64_t)low - (INT64_C(1) << 32) : (int64_t)low;
}

/* Two products make an int16 that saturates, two of these are added to an int32: PMADDUBSW, PMADDWD
 * with ones, PADDD. */
static int64_t x86_maddubs(const int64_t *products, long k, int64_t acc) {
    for (long i = 0; i < k; i += 4) {
        int64_t four = 0;
        for (long j = i; j < i + 4 && j < k; j += 2)
            four += int16_saturated(products[j] + (j + 1 < k ? products[j + 1] : 0));
        acc = int32_wrapped(acc + four);
    }
    return acc;
}

/* Two products are added to an int32: SMLAD. */
static int64_t arm_smlad(const int64_t *products, long k, int64_t acc) {
    for (long i = 0; i < k; i += 2)
        acc = int32_wrapped(acc + products[i] + (i + 1 < k ? products[i + 1] : 0));
    return acc;
}

static const struct {
    const char *widths, *groups, *saturates, *at_end; /* one digit or number for each stage */
    int64_t (*run)(const int64_t *, long, int64_t);
} machines[] = {
    {"16 32 32 ", "2 2 ", "1 0 0 ", "1 1 0 ", x86_maddubs},
    {"32 32 ", "2 ", "0 0 ", "1 0 ", arm_smlad},
};

static const char *words(const Value *list) { /* each with a blank behind it */
    char *text = get(32 * (size_t)list->count + 1);
    for (const Value *c = list->first; c; c = c->next) strcat(strcat(text, c->text), " ");
    return text;
}

/* --- operations ------------------------------------------------------------------------------- */

static void linear(const Value *a) {
    Tensor w = parameter(a, "weight", 2), z = tensor(member(a, "weight_zero_point"));
    int64_t *bias = bias_of(a, w.shape[0]), zero = integer(member(a, "x_zero_point"));
    check(z.size == 1 || z.size == w.shape[0], "shape_mismatch");
    Tensor x = batch(a, "x", 2);
    check(x.shape[1] == w.shape[1], "shape_mismatch");
    long n = x.shape[0], out = w.shape[0], in = w.shape[1], shape[] = {n, out};
    Tensor acc = make(2, shape);
    for (long s = 0; s < n; s++)
        for (long k = 0; k < out; k++) {
            int64_t sum = bias ? bias[k] : 0;
            int64_t zero_w = z.data[z.size > 1 ? k : 0];
            for (long i = 0; i < in; i++)
                sum = plus(sum, times(w.data[k * in + i] - zero_w, x.data[s * in + i] - zero));
            acc.data[s * out + k] = sum;
        }
    answer("acc", acc);
}

static void conv2d(const Value *a) {
    Tensor w = parameter(a, "weight", 4);
    int64_t *bias = bias_of(a, w.shape[0]), pad_code = integer(member(a, "pad_code"));
    check(pad_code >= INT32_MIN && pad_code <= UINT32_MAX, "out_of_range");
    long stride[2], dilation[2], before[2], padded[2], positions[2];
    per_axis(a, "stride", stride);
    per_axis(a, "dilation", dilation);
    long groups = (long)integer(member(a, "groups"));
    check(groups >= 1 && w.shape[0] % groups == 0, "invalid_parameter");
    const Value *pads = member(a, "padding");
    check(pads->count == 2, "invalid_parameter");
    pads = pads->first;
    for (int i = 0; i < 2; i++, pads = pads->next) {
        long after = (long)entry(pads, 1);
        before[i] = (long)entry(pads, 0);
        check(before[i] >= 0 && after >= 0, "invalid_parameter");
        padded[i] = before[i] + after;
    }
    Tensor x = batch(a, "x", 4);
    check(x.shape[1] == w.shape[1] * groups, "shape_mismatch");
    for (int i = 0; i < 2; i++) {
        long room = x.shape[2 + i] + padded[i] - dilation[i] * (w.shape[2 + i] - 1) - 1;
        check(room >= 0, "shape_mismatch");
        positions[i] = room / stride[i] + 1;
    }
    long out = w.shape[0], per_group = w.shape[1], kh = w.shape[2], kw = w.shape[3];
    long shape[] = {x.shape[0], out, positions[0], positions[1]};
    Tensor acc = make(4, shape);
    int64_t *target = acc.data;
    for (long n = 0; n < shape[0]; n++)
        for (long k = 0; k < out; k++)
            for (long i = 0; i < positions[0]; i++)
                for (long j = 0; j < positions[1]; j++) {
                    int64_t sum = bias ? bias[k] : 0;
                    for (long c = 0; c < per_group; c++)
                        for (long u = 0; u < kh; u++)
                            for (long v = 0; v < kw; v++) {
                                long channel = k / (out / groups) * per_group + c;
                                long row = i * stride[0] + u * dilation[0] - before[0];
                                long column = j * stride[1] + v * dilation[1] - before[1];
                                int inside = row >= 0 && row < x.shape[2] && column >= 0 &&
                                             column < x.shape[3];
                                long place = ((n * x.shape[1] + channel) * x.shape[2] + row) *
                                                 x.shape[3] + column;
                                int64_t weight = w.data[((k * per_group + c) * kh + u) * kw + v];
                                sum = plus(sum, times(weight, inside ? x.data[place] : pad_code));
                            }
                    *target++ = sum;
                }
    answer("acc", acc);
}

static void requantize_thresholds(const Value *a) {
    int64_t bits = integer(member(a, "bits"));
    int is_signed = !strcmp(member(a, "signed")->text, "true");
    int narrow = !strcmp(member(a, "narrow")->text, "true");
    check(bits >= 1 && bits <= 32 && (bits > 1 || !narrow), "invalid_parameter");
    Tensor t = parameter(a, "thresholds", 2);
    int64_t q_min = is_signed ? -(INT64_C(1) << (bits - 1)) + narrow : 0;
    long levels = t.shape[1], rows = t.shape[0];
    check(levels == (INT64_C(1) << bits) - 1 - narrow, "shape_mismatch");
    for (long i = 1; i < t.size; i++)
        check(i % levels == 0 || t.data[i] >= t.data[i - 1], "invalid_parameter");
    check_integers(member(member(a, "acc"), "data"));
    Tensor acc = batch(a, "acc", 0);
    check(rows == 1 || rows == acc.shape[1], "shape_mismatch");
    for (long i = 0; i < acc.size; i++)
        check(acc.data[i] > INT64_MIN && acc.data[i] < INT64_MAX, "out_of_range");
    long channels = acc.shape[1], inner = acc.size / acc.shape[0] / channels;
    for (long i = 0; i < acc.size; i++) {
        const int64_t *row = t.data + (rows > 1 ? i / inner % channels : 0) * levels;
        int64_t code = q_min;
        for (long k = 0; k < levels; k++) code += acc.data[i] >= row[k];
        acc.data[i] = code;
    }
    answer("codes", acc);
}

static void accumulate_stages(const Value *a) {
    long stages = member(a, "widths")->count;
    check(member(a, "signed")->count == stages, "shape_mismatch");
    int64_t (*add_up)(const int64_t *, long, int64_t) = NULL;
    for (size_t i = 0; i < sizeof machines / sizeof *machines; i++)
        if (!strcmp(machines[i].widths, words(member(a, "widths"))) &&
            !strcmp(machines[i].groups, words(member(a, "groups"))) &&
            !strcmp(machines[i].saturates, words(member(a, "saturates"))) &&
            !strcmp(machines[i].at_end, words(member(a, "at_end"))))
            add_up = machines[i].run;
    int is_signed = !strchr(words(member(a, "signed")), '0');
    if (!add_up || !is_signed || strcmp(member(a, "order")->text, "forward")) skip("not this machine");
    if (!strcmp(member(a, "bias_at")->text, "outside")) skip("not this machine");
    Tensor w = parameter(a, "weight", 3);
    int64_t *bias = bias_of(a, w.shape[0]);
    Tensor x = batch(a, "x", 3);
    check(x.shape[1] == w.shape[1] && x.shape[2] == w.shape[2], "shape_mismatch");
    long n = x.shape[0], out = w.shape[0], k = w.shape[1] * w.shape[2], shape[] = {n, out};
    Tensor acc = make(2, shape);
    int64_t *products = get((size_t)k * sizeof *products);
    for (long s = 0; s < n; s++)
        for (long o = 0; o < out; o++) {
            for (long i = 0; i < k; i++) products[i] = times(w.data[o * k + i], x.data[s * k + i]);
            int64_t first = bias ? int32_wrapped(bias[o]) : 0; /* where sums wrap, any place */
            acc.data[s * out + o] = add_up(products, k, first);
        }
    answer("acc", acc);
}

static void flatten(const Value *a) {
    Tensor x = batch(a, "x", 0);
    x.shape[1] = x.size / x.shape[0];
    x.ndim = 2;
    answer("y", x);
}
