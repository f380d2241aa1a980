/* A program under test in plain C: operations on 64-bit integers, JSON lines in and out.
 *
 * Everything above "operations" is reading and writing; a real implementation keeps that part and
 * calls its own kernels.  Values that do not fit 64 bits are skipped, never wrapped.
 */
#include <ctype.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- answers other than results -------------------------------------------------------------- */

static jmp_buf answered;
static long long seq;

static void skip(const char *why) {
    printf("{\"seq\": %lld, \"skipped\": \"%s\"}\n", seq, why);
    longjmp(answered, 1);
}

static void refuse(const char *code) {
    printf("{\"seq\": %lld, \"error\": \"%s\"}\n", seq, code);
    longjmp(answered, 1);
}

/* --- memory: one arena, emptied after every line --------------------------------------------- */

static char arena[1 << 26];
static size_t used;

static void *get(size_t size) {
    size = (size + 15) / 16 * 16;
    if (used + size > sizeof arena) skip("out of memory");
    void *block = arena + used;
    used += size;
    return memset(block, 0, size);
}

/* --- JSON: a tree whose scalars keep their text ----------------------------------------------- */

typedef struct Value {
    char type;               /* 'o'bject, 'a'rray, 's'tring, or 'w'ord: number, true, false, null */
    char *text;              /* of strings and words */
    char *key;               /* inside an object */
    struct Value *first, *next;
    long count;
} Value;

static const char *at;

static void blank(void) {
    while (isspace((unsigned char)*at)) at++;
}

static char *copy(const char *from, const char *to) {
    char *text = get((size_t)(to - from) + 1);
    memcpy(text, from, (size_t)(to - from));
    return text;
}

static char *string(void) { /* escapes are kept as they are: our names need none */
    const char *from = ++at;
    while (*at && *at != '"') at += *at == '\\' && at[1] ? 2 : 1;
    char *text = copy(from, at);
    if (*at) at++;
    return text;
}

static Value *value(void) {
    Value *v = get(sizeof *v);
    blank();
    if (*at == '{' || *at == '[') {
        char closing = *at == '{' ? '}' : ']';
        Value **end = &v->first;
        v->type = *at == '{' ? 'o' : 'a';
        at++;
        for (blank(); *at && *at != closing; blank()) {
            char *key = NULL;
            if (v->type == 'o') {
                key = string();
                blank();
                at++; /* the colon */
            }
            *end = value();
            (*end)->key = key;
            end = &(*end)->next;
            v->count++;
            blank();
            if (*at == ',') at++;
        }
        if (*at) at++;
    } else if (*at == '"') {
        v->type = 's';
        v->text = string();
    } else {
        const char *from = at;
        v->type = 'w';
        while (*at && !strchr(",]} \t\r\n", *at)) at++;
        v->text = copy(from, at);
    }
    return v;
}

static void print(const Value *v) {
    if (v->type == 's') printf("\"%s\"", v->text);
    else if (v->type == 'w') printf("%s", v->text);
    else {
        putchar(v->type == 'o' ? '{' : '[');
        for (const Value *c = v->first; c; c = c->next) {
            if (c->key) printf("\"%s\": ", c->key);
            print(c);
            if (c->next) printf(", ");
        }
        putchar(v->type == 'o' ? '}' : ']');
    }
}

static Value *member(const Value *object, const char *key) {
    for (Value *c = object->first; c; c = c->next)
        if (c->key && !strcmp(c->key, key)) return c;
    refuse("invalid_parameter");
    return NULL;
}

static int is_null(const Value *v) { return v->type == 'w' && !strcmp(v->text, "null"); }

static int64_t integer(const Value *v) { /* a number, or a string of digits beyond 2^53 */
    char *end;
    if (!v->text) refuse("invalid_parameter");
    size_t digits = strlen(v->text);
    if (digits > 20) skip("beyond 64 bits");
    long long n = strtoll(v->text, &end, 10);
    char again[32];
    snprintf(again, sizeof again, "%lld", n);
    if (strcmp(again, v->text)) skip("beyond 64 bits");
    return n;
}

static int64_t entry(const Value *list, int i) {
    const Value *c = list->first;
    while (c && i--) c = c->next;
    if (!c) refuse("shape_mismatch");
    return integer(c);
}

/* --- tensors ---------------------------------------------------------------------------------- */

typedef struct {
    int ndim;
    long shape[8];
    long size;
    int64_t *data;
} Tensor;

static Tensor make(int ndim, const long *shape) {
    Tensor t = {ndim, {0}, 1, NULL};
    for (int i = 0; i < ndim; i++) t.size *= t.shape[i] = shape[i];
    t.data = get((size_t)t.size * sizeof *t.data);
    return t;
}

static Tensor tensor(const Value *v) {
    const Value *shape = member(v, "shape"), *data = member(v, "data");
    long dims[8];
    int ndim = 0;
    if (shape->count > 8) skip("more than 8 dimensions");
    for (const Value *c = shape->first; c; c = c->next) dims[ndim++] = (long)integer(c);
    Tensor t = make(ndim, dims);
    if (data->count != t.size) refuse("shape_mismatch");
    long i = 0;
    for (const Value *c = data->first; c; c = c->next) t.data[i++] = integer(c);
    return t;
}

static void answer(const char *name, Tensor t) {
    printf("{\"seq\": %lld, \"result\": {\"%s\": {\"dtype\": \"int\", \"shape\": [", seq, name);
    for (int i = 0; i < t.ndim; i++) printf(i ? ", %ld" : "%ld", t.shape[i]);
    printf("], \"data\": [");
    for (long i = 0; i < t.size; i++) {
        int large = t.data[i] > (1LL << 53) || t.data[i] < -(1LL << 53);
        printf(large ? "%s\"%lld\"" : "%s%lld", i ? ", " : "", (long long)t.data[i]);
    }
    printf("]}}}\n");
}

static int64_t add(int64_t a, int64_t b) {
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

/* --- operations ------------------------------------------------------------------------------- */

static void linear(const Value *a) {
    Tensor x = tensor(member(a, "x")), w = tensor(member(a, "weight"));
    Tensor z = tensor(member(a, "weight_zero_point"));
    int64_t zero = integer(member(a, "x_zero_point"));
    int has_bias = !is_null(member(a, "bias"));
    Tensor b = has_bias ? tensor(member(a, "bias")) : z;
    if (x.ndim != 2 || w.ndim != 2 || x.shape[1] != w.shape[1]) refuse("shape_mismatch");
    long n = x.shape[0], out = w.shape[0], in = w.shape[1], shape[] = {n, out};
    Tensor acc = make(2, shape);
    for (long s = 0; s < n; s++)
        for (long k = 0; k < out; k++) {
            int64_t sum = has_bias ? b.data[k] : 0;
            int64_t zero_w = z.data[z.size > 1 ? k : 0];
            for (long i = 0; i < in; i++)
                sum = add(sum, times(w.data[k * in + i] - zero_w, x.data[s * in + i] - zero));
            acc.data[s * out + k] = sum;
        }
    answer("acc", acc);
}

static void conv2d(const Value *a) {
    Tensor x = tensor(member(a, "x")), w = tensor(member(a, "weight"));
    int has_bias = !is_null(member(a, "bias"));
    Tensor b = has_bias ? tensor(member(a, "bias")) : w;
    long groups = (long)integer(member(a, "groups"));
    int64_t pad_code = integer(member(a, "pad_code"));
    long stride[2], dilation[2], before[2], positions[2];
    if (x.ndim != 4 || w.ndim != 4 || x.shape[1] != w.shape[1] * groups) refuse("shape_mismatch");
    const Value *pads = member(a, "padding")->first;
    for (int i = 0; i < 2; i++, pads = pads->next) {
        stride[i] = (long)entry(member(a, "stride"), i);
        dilation[i] = (long)entry(member(a, "dilation"), i);
        before[i] = (long)entry(pads, 0);
        long padded = x.shape[2 + i] + before[i] + (long)entry(pads, 1);
        long room = padded - dilation[i] * (w.shape[2 + i] - 1) - 1;
        if (room < 0) refuse("shape_mismatch");
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
                    int64_t sum = has_bias ? b.data[k] : 0;
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
                                sum = add(sum, times(weight, inside ? x.data[place] : pad_code));
                            }
                    *target++ = sum;
                }
    answer("acc", acc);
}

static void requantize_thresholds(const Value *a) {
    Tensor acc = tensor(member(a, "acc")), t = tensor(member(a, "thresholds"));
    int64_t bits = integer(member(a, "bits"));
    int is_signed = !strcmp(member(a, "signed")->text, "true");
    int narrow = !strcmp(member(a, "narrow")->text, "true");
    int64_t q_min = is_signed ? -(INT64_C(1) << (bits - 1)) + narrow : 0;
    if (t.ndim != 2 || t.shape[1] != (INT64_C(1) << bits) - 1 - narrow) refuse("shape_mismatch");
    long levels = t.shape[1], rows = t.shape[0];
    for (long i = 1; i < t.size; i++)
        if (i % levels && t.data[i] < t.data[i - 1]) refuse("invalid_parameter");
    long channels = acc.shape[1], inner = acc.size / acc.shape[0] / channels;
    for (long i = 0; i < acc.size; i++) {
        const int64_t *row = t.data + (rows > 1 ? i / inner % channels : 0) * levels;
        int64_t code = q_min;
        for (long k = 0; k < levels; k++) code += acc.data[i] >= row[k];
        acc.data[i] = code;
    }
    answer("codes", acc);
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

static void accumulate_stages(const Value *a) {
    Tensor x = tensor(member(a, "x")), w = tensor(member(a, "weight"));
    int has_bias = !is_null(member(a, "bias"));
    Tensor b = has_bias ? tensor(member(a, "bias")) : w;
    int64_t (*add_up)(const int64_t *, long, int64_t) = NULL;
    for (size_t i = 0; i < sizeof machines / sizeof *machines; i++)
        if (!strcmp(machines[i].widths, words(member(a, "widths"))) &&
            !strcmp(machines[i].groups, words(member(a, "groups"))) &&
            !strcmp(machines[i].saturates, words(member(a, "saturates"))) &&
            !strcmp(machines[i].at_end, words(member(a, "at_end"))))
            add_up = machines[i].run;
    int is_signed = !strchr(words(member(a, "signed")), '0');
    if (!add_up || !is_signed || strcmp(member(a, "order")->text, "forward")) skip("not this machine");
    if (has_bias && !strcmp(member(a, "bias_at")->text, "outside")) skip("not this machine");
    if (x.ndim != 3 || w.ndim != 3 || x.shape[1] != w.shape[1] || x.shape[2] != w.shape[2])
        refuse("shape_mismatch");
    long n = x.shape[0], out = w.shape[0], k = w.shape[1] * w.shape[2], shape[] = {n, out};
    Tensor acc = make(2, shape);
    int64_t *products = get((size_t)k * sizeof *products);
    for (long s = 0; s < n; s++)
        for (long o = 0; o < out; o++) {
            for (long i = 0; i < k; i++) products[i] = times(w.data[o * k + i], x.data[s * k + i]);
            int64_t first = has_bias ? int32_wrapped(b.data[o]) : 0; /* where sums wrap, any place */
            acc.data[s * out + o] = add_up(products, k, first);
        }
    answer("acc", acc);
}

static void flatten(const Value *a) {
    Tensor x = tensor(member(a, "x"));
    x.shape[1] = x.size / x.shape[0];
    x.ndim = 2;
    answer("y", x);
}

static void echo(const Value *a) {
    printf("{\"seq\": %lld, \"result\": ", seq);
    print(a);
    printf("}\n");
}

/* --- the loop --------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    void (*run)(const Value *);
} operations[] = {
    {"echo", echo},       {"linear", linear},   {"conv2d", conv2d},
    {"flatten", flatten}, {"requantize_thresholds", requantize_thresholds},
    {"accumulate_stages", accumulate_stages},
};

static void run(const Value *message) {
    const char *name = member(message, "operation")->text;
    seq = integer(member(message, "seq"));
    if (setjmp(answered)) return;
    for (size_t i = 0; i < sizeof operations / sizeof *operations; i++)
        if (!strcmp(operations[i].name, name)) {
            operations[i].run(member(message, "arguments"));
            return;
        }
    skip("no such operation");
}

int main(void) {
    static char line[1 << 24];
    while (fgets(line, sizeof line, stdin)) {
        used = 0;
        at = line;
        if (setjmp(answered)) continue;
        Value *message = value();
        const char *command = member(message, "cmd")->text;
        if (!strcmp(command, "stop")) break;
        if (!strcmp(command, "start"))
            printf("{\"protocol\": 1, \"name\": \"integers.c\", \"operations\": [\"linear\", "
                   "\"conv2d\", \"flatten\", \"requantize_thresholds\", "
                   "\"accumulate_stages\"]}\n");
        else
            run(message);
        fflush(stdout);
    }
    return 0;
}
