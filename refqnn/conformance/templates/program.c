/* A program under test in C: reading and writing is done, each operation is to be written.
 *
 * An operation reads its arguments with member(), integer(), entry(), tensor() and real(), and ends
 * with answer(), or with refuse("out_of_range") or another error code, or with skip("why").
 *
 *     cc -o program program.c && refqnn conform -- ./program
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

static double real(const Value *v) { return strtod(v->text, NULL); } /* hexadecimal, inf, nan */

/* --- operations ------------------------------------------------------------------------------- */

@STUBS@
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
    {"echo", echo},
@TABLE@
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
        if (!strcmp(command, "start")) {
            printf("{\"protocol\": 1, \"name\": \"program.c\", \"operations\": [");
            for (size_t i = 1; i < sizeof operations / sizeof *operations; i++)
                printf(i > 1 ? ", \"%s\"" : "\"%s\"", operations[i].name);
            printf("]}\n");
        } else
            run(message);
        fflush(stdout);
    }
    return 0;
}
