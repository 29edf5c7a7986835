/* Remembered choices (csrc/ops/cuda/choices.c): found, replaced, read again, and what a damaged file does. */
#include "../../csrc/ops/cuda/choices.c"

static int failures;

#define CHECK(condition) \
    if (!(condition)) failures++, printf("FAIL %s:%d: %s\n", __FILE__, __LINE__, #condition)

static ipvg_choices again(bool keep)
{
    ipvg_choices c;
    ipvg_choices_open(&c, "test", 3, 2, 0, 7, keep);
    return c;
}

static bool is(const ipvg_choices *c, const int64_t *key, int64_t a, int64_t b)
{
    const int64_t *v = ipvg_choices_get(c, key);
    return v && v[0] == a && v[1] == b;
}

int main(void)
{
    char folder[] = "/tmp/ipvg-choices-XXXXXX", command[1200];
    const int64_t one[] = {1, -2, INT64_MAX}, two[] = {1, -2, 3};
    if (!mkdtemp(folder)) return 1;
    setenv("XDG_CACHE_HOME", folder, 1);

    ipvg_choices a = again(true), b = again(true), c;
    CHECK(!ipvg_choices_get(&a, one));
    ipvg_choices_put(&a, one, (const int64_t[]){INT64_MIN, 5});
    ipvg_choices_put(&b, two, (const int64_t[]){6, 7}); /* another process: its file keeps what is there */
    CHECK(is(&a, one, INT64_MIN, 5) && !ipvg_choices_get(&a, two));
    CHECK(is(&b, one, INT64_MIN, 5) && is(&b, two, 6, 7));
    ipvg_choices_put(&b, two, (const int64_t[]){8, 9});
    c = again(true);
    CHECK(c.count == 2 && is(&c, one, INT64_MIN, 5) && is(&c, two, 8, 9));
    for (int64_t i = 0; i < 100; i++) ipvg_choices_put(&c, (const int64_t[]){i, i, i}, (const int64_t[]){i, -i});
    ipvg_choices_close(&a);
    a = again(true);
    CHECK(a.count == 102 && is(&a, (const int64_t[]){99, 99, 99}, 99, -99) && is(&a, two, 8, 9));
    ipvg_choices_close(&b);
    b = again(false);
    CHECK(!b.file[0] && !b.count);

    FILE *f = fopen(a.file, "w"); /* a short line, no numbers, a number that is none, an end without a newline */
    fprintf(f, "1 2 3\nhello\n\n1 2 x 4 5\n1 2 3 4 5 6 7\n9 9 9 1 2");
    fclose(f);
    ipvg_choices_close(&c);
    c = again(true);
    CHECK(c.count == 2 && is(&c, (const int64_t[]){1, 2, 3}, 4, 5) && is(&c, (const int64_t[]){9, 9, 9}, 1, 2));

    setenv("IPVG_CUDA_TUNE", "0", 1);
    CHECK(!ipvg_choices_wanted());
    unsetenv("IPVG_CUDA_TUNE");
    CHECK(ipvg_choices_wanted());
    setenv("XDG_CACHE_HOME", "/proc/nowhere", 1); /* no place for a file: remembered in this process */
    ipvg_choices_close(&b);
    b = again(true);
    ipvg_choices_put(&b, one, (const int64_t[]){1, 2});
    CHECK(is(&b, one, 1, 2));

    ipvg_choices_close(&a), ipvg_choices_close(&b), ipvg_choices_close(&c);
    snprintf(command, sizeof command, "rm -r %s", folder);
    failures += system(command) != 0;
    printf(failures ? "%d failures\n" : "ok\n", failures);
    return failures != 0;
}
