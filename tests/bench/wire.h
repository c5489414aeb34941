/* What the load generator and the upstream have in common: time, bytes, WebSocket frames, and the pushed messages.
 * Meant for a loopback benchmark on Linux: strict about what is received, without mercy when memory runs out. */
#pragma once

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define TOKEN "dDEyMy9iZW5jaDpzZWNyZXQ=" /* t123/bench:secret in base64: the credential that upstream accepts */

static inline uint64_t now(void) /* in nanoseconds, the same clock in all processes */
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* As many open files as the machine lets us have: one per client. */
static inline void open_files_max(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static inline void no_delay(int fd)
{
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

/* Bytes ------------------------------------------------------------------------------------------------------------ */

struct bytes {
    char *at;
    size_t size, room;
};

/* Room for `more` bytes and a NUL behind what is there. */
static inline char *bytes_reserve(struct bytes *b, size_t more)
{
    if (b->size + more + 1 > b->room) {
        b->room = (b->size + more + 1) * 2;
        b->at = realloc(b->at, b->room);
        if (!b->at)
            abort();
    }
    return b->at + b->size;
}

static inline void bytes_add(struct bytes *b, const void *from, size_t size)
{
    memcpy(bytes_reserve(b, size), from, size);
    b->size += size;
    b->at[b->size] = 0;
}

__attribute__((format(printf, 2, 3))) static inline void bytes_print(struct bytes *b, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int size = vsnprintf(bytes_reserve(b, 1024), 1024, format, args);
    va_end(args);
    if (size < 0 || size >= 1024)
        abort();
    b->size += (size_t)size;
}

static inline void bytes_release(struct bytes *b)
{
    free(b->at);
    *b = (struct bytes){0};
}

/* Takes `size` bytes from the front; what is empty holds no memory, for most of 9,000 clients are idle. */
static inline void bytes_drop(struct bytes *b, size_t size)
{
    if (size == b->size) {
        bytes_release(b);
    } else if (size) {
        b->size -= size;
        memmove(b->at, b->at + size, b->size + 1);
    }
}

/* WebSocket frames: whole messages only, for neither of the two programs and no peer makes fragments --------------- */

enum { TEXT = 1, CLOSE = 8, PING = 9, PONG = 10, HEAD_MAX = 14 };

struct frame {
    unsigned opcode;
    char *payload; /* unmasked */
    size_t size;
};

/* Writes a frame's head and returns its size. */
static inline size_t frame_head(uint8_t *head, unsigned opcode, size_t size, bool masked)
{
    size_t n = 2;
    uint8_t length = size < 126 ? (uint8_t)size : size < 65536 ? 126 : 127;
    head[0] = (uint8_t)(0x80 | opcode);
    head[1] = (uint8_t)((masked ? 0x80 : 0) | length);
    for (int left = length == 126 ? 2 : length == 127 ? 8 : 0; left; left--)
        head[n++] = (uint8_t)((uint64_t)size >> (8 * (left - 1)));
    return n;
}

static inline void frame_mask(char *payload, size_t size, const uint8_t key[4])
{
    for (size_t i = 0; i < size; i++)
        payload[i] = (char)((uint8_t)payload[i] ^ key[i & 3]);
}

/* Adds a frame; `key` is the mask of a client's frame, NULL for what comes from upstream. */
static inline void frame_add(struct bytes *to, unsigned opcode, const char *payload, size_t size, const uint8_t *key)
{
    uint8_t head[HEAD_MAX];
    bytes_add(to, head, frame_head(head, opcode, size, key != NULL));
    if (key)
        bytes_add(to, key, 4);
    size_t start = to->size;
    bytes_add(to, payload, size);
    if (key)
        frame_mask(to->at + start, size, key);
}

/* Reads the frame at the front. Returns its size, 0 where more is needed, -1 for what must not come: fragments,
 * reserved bits, a mask where there must be none or none where there must be one. */
static inline ssize_t frame_read(char *at, size_t size, bool masked, struct frame *frame)
{
    const uint8_t *head = (const uint8_t *)at;
    size_t n = 2;
    if (size < 2)
        return 0;
    if ((head[0] & 0xf0) != 0x80 || (head[1] >> 7) != masked)
        return -1;
    uint64_t length = head[1] & 0x7f;
    if (length > 125) {
        size_t more = length == 126 ? 2 : 8;
        if (size < n + more)
            return 0;
        for (length = 0; more; more--)
            length = length << 8 | head[n++];
    }
    if (length > 1 << 24)
        return -1;
    size_t whole = n + (masked ? 4 : 0) + (size_t)length;
    if (size < whole)
        return 0;
    *frame = (struct frame){head[0] & 0x0f, at + whole - length, (size_t)length};
    if (masked)
        frame_mask(frame->payload, frame->size, head + n);
    return (ssize_t)whole;
}

/* Pushed messages: of one size, numbered for each client, all else alike, so that a receiver compares them whole -- */

enum {
    CYCLE = 256, /* numbers start again at 0 after so many */
    NUMBER_AT = 48,
    NUMBER_SIZE = 3,
    SENT_AT = 61,
    SENT_SIZE = 16,
    PAD_AT = 86,
    PUSHED_MIN = 100,
};

/* Writes the message number 0 of a group, sent at 0. */
static inline void pushed_template(char *to, size_t size, unsigned group)
{
    int n = snprintf(to, size,
                     "[{\"channel\":\"/bench/%08u\",\"data\":{\"number\":\"000\",\"sent\":\"%016u\",\"pad\":\"",
                     group, 0);
    if (n != PAD_AT || size < PUSHED_MIN)
        abort();
    for (size_t i = PAD_AT; i < size - 4; i++)
        to[i] = (char)('a' + i % 26);
    memcpy(to + size - 4, "\"}}]", 4);
}

static inline void pushed_number(char *message, unsigned number)
{
    char *to = message + NUMBER_AT;
    to[0] = (char)('0' + number / 100);
    to[1] = (char)('0' + number / 10 % 10);
    to[2] = (char)('0' + number % 10);
}

static inline void pushed_sent(char *message, uint64_t nanoseconds)
{
    for (int i = SENT_SIZE - 1; i >= 0; i--, nanoseconds >>= 4)
        message[SENT_AT + i] = "0123456789abcdef"[nanoseconds & 15];
}

static inline uint64_t pushed_when(const char *message)
{
    uint64_t nanoseconds = 0;
    for (int i = 0; i < SENT_SIZE; i++) {
        unsigned digit = (unsigned char)message[SENT_AT + i];
        nanoseconds = nanoseconds << 4 | (digit > '9' ? digit - 'a' + 10 : digit - '0');
    }
    return nanoseconds;
}

/* What a publish carries, so that upstream can tell whether it came whole. */
static inline bool pad_is_whole(const char *pad, size_t size)
{
    for (size_t i = 0; i < size; i++)
        if (pad[i] != (char)('a' + i % 26))
            return false;
    return true;
}
