/* libFuzzer over csrc/remote: any bytes are an answer of a chat service, read as one that succeeded and as one that failed.
 * What is accepted must be text that a str can hold. */
#include <stdlib.h>
#include <string.h>

#include "../../csrc/remote/chat.h"
#include "../../csrc/remote/reply.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int condition)
{
    if (!condition) abort();
}

/* A second reading of RFC 3629, by decoding. */
static void require_utf8(const char *text)
{
    for (const unsigned char *p = (const unsigned char *)text; *p;) {
        int more = *p < 0x80 ? 0 : (*p & 0xe0) == 0xc0 ? 1 : (*p & 0xf0) == 0xe0 ? 2 : (*p & 0xf8) == 0xf0 ? 3 : -1;
        static const uint32_t least[] = {0, 0x80, 0x800, 0x10000};
        require(more >= 0);
        uint32_t c = more ? *p & (0x3fu >> more) : *p;
        for (int i = 1; i <= more; i++) {
            require((p[i] & 0xc0) == 0x80);
            c = c << 6 | (p[i] & 0x3f);
        }
        require(c >= least[more] && c <= 0x10ffff && !(c >= 0xd800 && c <= 0xdfff));
        p += 1 + more;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    ipvg_context ctx;
    ipvg_chat_answer answer;
    char said[64];
    char *text = malloc(size + 1); /* of exactly the size, so that a byte beyond it is seen */
    require(text != NULL);
    memcpy(text, data, size);
    text[size] = 0;
    ipvg_context_init(&ctx, 1);
    if (ipvg_chat_read(&ctx, &answer, text, size) == IPVG_OK) {
        if (answer.content) require_utf8(answer.content);
        if (answer.refusal) require_utf8(answer.refusal);
        require_utf8(answer.model);
        require_utf8(answer.finish_reason);
        require(strlen(answer.model) < sizeof answer.model && answer.prompt_tokens >= -1);
        require(strlen(answer.finish_reason) < sizeof answer.finish_reason && answer.completion_tokens >= -1);
    } else {
        require(!answer.content && !answer.refusal && ctx.error[0] && strlen(ctx.error) < sizeof ctx.error);
    }
    ipvg_chat_answer_free(&answer);
    ipvg_reply_explain(said, sizeof said, text, size);
    require(memchr(said, 0, sizeof said) != NULL);
    free(text);
    return 0;
}
