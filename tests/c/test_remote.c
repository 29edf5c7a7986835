/* What a chat service may send, byte for byte: each prefix of an answer and each byte of it changed end in an answer or in
 * an error with a text, and so does every single failing malloc, in the chat code and in an exchange over a socket.
 * Without libcurl's and cJSON's headers there is nothing to test. */
#include "check.h"

#if __has_include(<curl/curl.h>) && __has_include(<cjson/cJSON.h>)

#include <arpa/inet.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "../../csrc/remote/base64.h"
#include "../../csrc/remote/chat.h"
#include "../../csrc/remote/images.h"
#include "../../csrc/remote/reply.h"
#include "../../csrc/remote/retry.h"
#include "../../csrc/remote/url.h"

/* ---- the n-th allocation of this thread fails ---- */

static _Thread_local long until_failure; /* 0: none fails */
static _Thread_local int failed;

void *__interceptor_malloc(size_t size);
void *__interceptor_calloc(size_t count, size_t size);
void *__interceptor_realloc(void *old, size_t size);

static int fails(void)
{
    if (until_failure == 0 || --until_failure != 0) return 0;
    failed = 1;
    return 1;
}

void *malloc(size_t size) { return fails() ? NULL : __interceptor_malloc(size); }
void *calloc(size_t count, size_t size) { return fails() ? NULL : __interceptor_calloc(count, size); }
void *realloc(void *old, size_t size) { return fails() ? NULL : __interceptor_realloc(old, size); }
char *strdup(const char *text)
{
    size_t size = strlen(text) + 1;
    char *copy = malloc(size);
    return copy ? memcpy(copy, text, size) : NULL;
}

/* ---- chat ---- */

static const char good[] =
    "{\"id\":\"x\",\"model\":\"mock \\ud83d\\ude42\",\"choices\":[{\"index\":0,\"finish_reason\":\"stop\",\"message\":"
    "{\"role\":\"assistant\",\"content\":[{\"type\":\"text\",\"text\":\"h\\u00e9\"},{\"text\":\" \xe8\xb0\x81\"}],"
    "\"refusal\":\"no\"}}],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4e2}}";

/* Reads exactly size bytes and the zero behind them, in a block of that size. */
static ipvg_status read_answer(ipvg_context *ctx, ipvg_chat_answer *answer, const char *text, size_t size)
{
    char *copy = __interceptor_malloc(size + 1), said[64];
    memcpy(copy, text, size);
    copy[size] = 0;
    ctx->error[0] = 0;
    ipvg_status status = ipvg_chat_read(ctx, answer, copy, size);
    CHECK((status == IPVG_OK) == (ctx->error[0] == 0) && strlen(ctx->error) < sizeof ctx->error);
    if (!until_failure) {
        memset(said, 'x', sizeof said);
        ipvg_reply_explain(said, sizeof said, copy, size);
        CHECK(memchr(said, 0, sizeof said));
    }
    free(copy);
    return status;
}

static void a_good_answer(void)
{
    ipvg_context ctx;
    ipvg_chat_answer a;
    ipvg_context_init(&ctx, 1);
    CHECK(read_answer(&ctx, &a, good, sizeof good - 1) == IPVG_OK);
    CHECK(strcmp(a.content, "h\xc3\xa9 \xe8\xb0\x81") == 0 && strcmp(a.refusal, "no") == 0);
    CHECK(strcmp(a.finish_reason, "stop") == 0 && strcmp(a.model, "mock \xf0\x9f\x99\x82") == 0);
    CHECK(a.prompt_tokens == 3 && a.completion_tokens == 400);
    ipvg_chat_answer_free(&a);
    ipvg_chat_answer_free(&a);
}

static void every_prefix_and_every_changed_byte(void)
{
    ipvg_context ctx;
    ipvg_chat_answer a;
    ipvg_context_init(&ctx, 1);
    for (size_t n = 0; n < sizeof good - 1; n++) {
        CHECK(read_answer(&ctx, &a, good, n) == IPVG_E_FORMAT && !a.content && !a.refusal);
    }
    const char changes[] = {0, '"', '\\', '{', ']', ',', 'u', '0', -1, 27, (char)0xc3};
    char text[sizeof good];
    int accepted = 0;
    for (size_t i = 0; i < sizeof good - 1; i++)
        for (size_t k = 0; k < sizeof changes; k++) {
            memcpy(text, good, sizeof good);
            text[i] = changes[k];
            accepted += read_answer(&ctx, &a, text, sizeof good - 1) == IPVG_OK;
            ipvg_chat_answer_free(&a);
        }
    CHECK(accepted > 100 && accepted < 2000); /* letters of texts may change, structure may not */
}

static void depth_and_count_have_limits(void)
{
    ipvg_context ctx;
    cJSON *root;
    char text[2 * 65 + 1], *many = malloc(2 * 100001 + 2);
    ipvg_context_init(&ctx, 1);
    for (int depth = 64; depth <= 65; depth++) {
        memset(text, '[', (size_t)depth);
        memset(text + depth, ']', (size_t)depth);
        text[2 * depth] = 0;
        CHECK((ipvg_json_parse(&ctx, &root, text, 2 * (size_t)depth) == IPVG_OK) == (depth == 64));
        cJSON_Delete(root);
    }
    for (size_t values = 99998; values <= 100001; values += 3) {
        many[0] = '[';
        for (size_t i = 0; i < values; i++) memcpy(many + 1 + 2 * i, "1,", 2);
        memcpy(many + 2 * values, "]", 2);
        CHECK((ipvg_json_parse(&ctx, &root, many, 2 * values + 1) == IPVG_OK) == (values < 100000));
        cJSON_Delete(root);
    }
    free(many);
}

static const ipvg_chat_part parts[] = {{.text = "Who? \"\\\n\xe8\xb0\x81"},
                                       {.data = "\xff\xd8\xff\xe0", .size = 4, .mime = "image/jpeg"}};
static const ipvg_chat_message messages[] = {{"system", parts, 1}, {"user", parts, 2}};
static const ipvg_chat_option options[] = {{.name = "max_tokens", .kind = IPVG_CHAT_NUMBER, .number = 5000},
                                           {.name = "seed", .kind = IPVG_CHAT_NUMBER, .number = 9007199254740992.0},
                                           {.name = "temperature", .kind = IPVG_CHAT_NUMBER, .number = 0.5},
                                           {.name = "store", .kind = IPVG_CHAT_BOOL, .number = 0},
                                           {.name = "user", .kind = IPVG_CHAT_TEXT, .text = "me"}};

static ipvg_status write_request(ipvg_context *ctx, char **body)
{
    return ipvg_chat_write(ctx, body, "mock", messages, 2, options, 5);
}

static void a_request(void)
{
    static const char text[] = "\"Who? \\\"\\\\\\n\xe8\xb0\x81\"";
    char expected[600], *body;
    ipvg_context ctx;
    ipvg_context_init(&ctx, 1);
    snprintf(expected, sizeof expected,
             "{\"model\":\"mock\",\"messages\":[{\"role\":\"system\",\"content\":%s},{\"role\":\"user\",\"content\":["
             "{\"type\":\"text\",\"text\":%s},{\"type\":\"image_url\",\"image_url\":{\"url\":"
             "\"data:image/jpeg;base64,/9j/4A==\"}}]}],\"max_tokens\":5000,\"seed\":9007199254740992,"
             "\"temperature\":0.5,\"store\":false,\"user\":\"me\"}",
             text, text);
    CHECK(write_request(&ctx, &body) == IPVG_OK && strcmp(body, expected) == 0);
    free(body);
}

static void every_allocation_of_chat_fails_once(void)
{
    ipvg_context ctx;
    ipvg_chat_answer a;
    char *body;
    int reads = 0, writes = 0;
    ipvg_context_init(&ctx, 1);
    for (failed = 1; failed; reads++) {
        failed = 0;
        until_failure = reads + 1;
        ipvg_status status = read_answer(&ctx, &a, good, sizeof good - 1);
        until_failure = 0;
        CHECK(failed ? status != IPVG_OK && !a.content && !a.refusal : status == IPVG_OK);
        ipvg_chat_answer_free(&a);
    }
    for (failed = 1; failed; writes++) {
        failed = 0;
        until_failure = writes + 1;
        ipvg_status status = write_request(&ctx, &body);
        until_failure = 0;
        CHECK(failed ? status == IPVG_E_MEMORY && !body : status == IPVG_OK);
        free(body);
    }
    CHECK(reads > 40 && writes > 40);
}

/* ---- images ---- */

static void base64_of_every_length(void)
{
    unsigned char bytes[40], back[48];
    char text[64];
    size_t n;
    for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (unsigned char)(i * 151 + 7);
    for (size_t size = 0; size <= sizeof bytes; size++) {
        ipvg_base64_write(text, bytes, size);
        CHECK(strlen(text) == IPVG_BASE64_LENGTH(size));
        CHECK(ipvg_base64_read(back, &n, text, strlen(text)) && n == size && !memcmp(back, bytes, size));
        size_t unpadded = strcspn(text, "=");
        CHECK(ipvg_base64_read(text, &n, text, unpadded) && n == size && !memcmp(text, bytes, size)); /* in place */
    }
    const char *wrong[] = {"A", "AAAAA", "AA=A", "AB==", "AAB=", "AA=", "A===", "AAAA=", "====", "AA-_", "A A="};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        CHECK(!ipvg_base64_read(back, &n, wrong[i], strlen(wrong[i])));
    CHECK(ipvg_base64_read(back, &n, "TW\r\nFu\n", 7) && n == 3 && !memcmp(back, "Man", 3));
}

/* The head of a PNG, 33 bytes, as base64: 3 x 2 pixels. */
#define PNG "iVBORw0KGgoAAAANSUhEUgAAAAMAAAACCAIAAAASFvFNAAAA"
static const char good_images[] = "{\"data\":[{\"b64_json\":\"" PNG
                                  "\",\"revised_prompt\":\"r\"},{\"url\":"
                                  "\"https://a/b\"}],\"usage\":{\"input_tokens\":3,\"output_tokens\":4}}";

static ipvg_status read_images(ipvg_context *ctx, ipvg_images_answer *answer, const char *text, size_t size)
{
    char *copy = __interceptor_malloc(size + 1);
    memcpy(copy, text, size);
    copy[size] = 0;
    ctx->error[0] = 0;
    ipvg_status status = ipvg_images_read(ctx, answer, copy, size);
    CHECK((status == IPVG_OK) == (ctx->error[0] == 0) && (status == IPVG_OK) == (answer->count > 0));
    free(copy);
    return status;
}

static void every_prefix_and_every_allocation_of_images(void)
{
    ipvg_context ctx;
    ipvg_images_answer a;
    int tries = 0;
    ipvg_context_init(&ctx, 1);
    for (size_t n = 0; n < sizeof good_images - 1; n++)
        CHECK(read_images(&ctx, &a, good_images, n) == IPVG_E_FORMAT && !a.items);
    for (failed = 1; failed; tries++) {
        failed = 0;
        until_failure = tries + 1;
        ipvg_status status = read_images(&ctx, &a, good_images, sizeof good_images - 1);
        until_failure = 0;
        CHECK(failed ? status != IPVG_OK && !a.items : status == IPVG_OK);
        if (!failed) {
            CHECK(a.count == 2 && a.items[0].size == 36 && !a.items[0].url && !strcmp(a.items[0].text, "r"));
            CHECK(!a.items[1].data && !strcmp(a.items[1].url, "https://a/b") && a.output_tokens == 4);
        }
        ipvg_images_answer_free(&a);
    }
    CHECK(tries > 20);
}

static void addresses_that_a_reply_may_name(void)
{
    static const struct {
        const char *url, *service;
        bool any_http, allowed;
    } cases[] = {{"https://a/b", "https://s", false, true},
                 {"http://a/b", "https://s", false, false},
                 {"http://a/b", "https://s", true, true},
                 {"http://127.0.0.1:9/b", "http://localhost:1/v1", false, true},
                 {"http://[::1]/b", "http://127.0.0.2/v1", false, true},
                 {"http://0x7f.1/b", "http://127.0.0.1/v1", false, true},
                 {"http://127.0.0.1/b", "https://s", false, false},
                 {"http://127.0.0.1.a/b", "http://localhost/v1", false, false},
                 {"http://localhost.a/b", "http://localhost/v1", false, false},
                 {"https://u@a/b", "https://s", true, false},
                 {"ftp://a/b", "https://s", true, false}};
    ipvg_context ctx;
    ipvg_context_init(&ctx, 1);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        CHECK((ipvg_url_check(&ctx, cases[i].url, cases[i].service, cases[i].any_http) == IPVG_OK) == cases[i].allowed);
    int tries = 0;
    for (failed = 1; failed; tries++) {
        failed = 0;
        until_failure = tries + 1;
        ipvg_status status = ipvg_url_check(&ctx, "https://a:1/b?c", "https://s", false);
        until_failure = 0;
        CHECK(failed ? status != IPVG_OK : status == IPVG_OK);
    }
    CHECK(tries > 4);
}

/* ---- http ---- */

static void *serve(void *listener)
{
    static const char answer[] =
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nx-request-id: r1\r\n"
        "Content-Length: 21\r\n\r\n{\"key\": \"sk-secret1\"}";
    char request[4096];
    for (int connection; (connection = accept(*(int *)listener, NULL, NULL)) >= 0; close(connection)) {
        size_t have = 0;
        for (ssize_t n; (n = read(connection, request + have, sizeof request - have - 1)) > 0;) {
            request[have += (size_t)n] = 0;
            if (!strstr(request, "\r\n\r\n{}") && !strstr(request, "--\r\n")) continue;
            if (write(connection, answer, sizeof answer - 1) < 0) break;
            have = 0;
        }
    }
    return NULL;
}

static void every_allocation_of_an_exchange_fails_once(bool form)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    char url[64];
    pthread_t thread;
    ipvg_context ctx;
    int listener = socket(AF_INET, SOCK_STREAM, 0), tries = 0, successes = 0;
    CHECK(bind(listener, (void *)&address, length) == 0 && listen(listener, 8) == 0);
    CHECK(getsockname(listener, (void *)&address, &length) == 0);
    CHECK(pthread_create(&thread, NULL, serve, &listener) == 0);
    snprintf(url, sizeof url, "http://127.0.0.1:%d/v1", ntohs(address.sin_port));
    ipvg_http_request request = {.url = url,
                                 .key = "sk-secret1",
                                 .body = "{}",
                                 .size = 2,
                                 .connect_timeout = 5,
                                 .timeout = 20,
                                 .silence_timeout = 10,
                                 .max_bytes = 1000};
    const ipvg_http_field fields[] = {{"prompt", "Who?", 4, NULL, NULL}, {"image", "\x89PNG", 4, "a.png", "image/png"}};
    if (form) request.body = NULL, request.fields = fields, request.field_count = 2, request.plain_key = true;
    ipvg_context_init(&ctx, 1);
    setenv("no_proxy", "*", 1);
    ipvg_http *first = NULL;
    CHECK(ipvg_http_open(&ctx, &first) == IPVG_OK); /* what libcurl sets up once for the process */
    for (failed = 1; failed; tries++) {
        ipvg_http *http = NULL;
        ipvg_http_answer answer = {0};
        failed = 0;
        until_failure = tries + 1;
        ipvg_status status = ipvg_http_open(&ctx, &http);
        if (status == IPVG_OK) status = ipvg_http_send(&ctx, http, &answer, &request);
        until_failure = 0;
        CHECK(failed || status == IPVG_OK);
        if (status == IPVG_OK) { /* also after a failure that libcurl could do without */
            CHECK(answer.status == 200 && answer.size == 21 && !strcmp(answer.body, "{\"key\": \"**********\"}"));
            CHECK(!strcmp(answer.request_id, "r1") && !strcmp(answer.type, "application/json"));
            successes++;
        }
        ipvg_http_answer_free(&answer);
        ipvg_http_close(&http);
    }
    CHECK(tries > 20 && successes >= 1);
    ipvg_http_close(&first);
    shutdown(listener, SHUT_RDWR);
    pthread_join(thread, NULL);
    close(listener);
}

static void waits_grow_within_their_range(void)
{
    const ipvg_retry policy = {.attempts = 9, .deadline = 60, .first_wait = 0.5, .max_wait = 30};
    const double full[] = {0.5, 1, 2, 4, 8, 16, 30, 30};
    for (int i = 1; i <= 8; i++) {
        CHECK(ipvg_retry_wait(&policy, i, 0, 0) == full[i - 1] / 2);
        CHECK(ipvg_retry_wait(&policy, i, 0, 0.5) == full[i - 1] * 0.75);
        CHECK(ipvg_retry_wait(&policy, i, 100, 0.5) == 100);
    }
    for (long s = 100; s < 600; s++) CHECK(ipvg_retry_status(s) == (s == 408 || s == 409 || s == 429 || s >= 500));
}

int main(void)
{
    a_good_answer();
    every_prefix_and_every_changed_byte();
    depth_and_count_have_limits();
    a_request();
    every_allocation_of_chat_fails_once();
    base64_of_every_length();
    every_prefix_and_every_allocation_of_images();
    addresses_that_a_reply_may_name();
    every_allocation_of_an_exchange_fails_once(false);
    every_allocation_of_an_exchange_fails_once(true);
    waits_grow_within_their_range();
    return 0;
}

#else

int main(void) { return 0; }

#endif
