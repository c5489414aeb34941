/* The load generator: Bayeux clients that check what they get. One thread, epoll.
 *
 *   load MODE port=PORT upstream=PORT [clients=N] [size=BYTES] [rate=N] [authn=1] [limit=S]
 *
 * `port` is where the clients connect; `upstream` is where pushes are asked for, past the proxy. With authn=1 the clients
 * send the credential themselves, for a proxy that puts none in.
 *
 *   handshake   connect, upgrade, /meta/handshake, close; `clients` at a time
 *   flood       upstream pushes messages of `size` bytes as fast as they are taken
 *   paced       upstream pushes `rate` messages a second in all, each in a send of its own
 *   echo        each client publishes `size` bytes, waits for the answer, and publishes again
 *   longpoll    each client POSTs /meta/connect, waits for the answer, and POSTs again
 *   idle        the clients have done their handshakes and subscribed, and do nothing
 *   stalled     upstream pushes as for flood; no client reads
 *
 * It says {"ready":N} when N clients are set up (handshaken, subscribed). For each number on a line of standard input it
 * works for as many milliseconds and prints the result; at the line "end" it ends. Whatever comes otherwise than it
 * should, on any client, ends it at once with {"failure":"..."} and exit code 1: what is measured is right, or it is not
 * measured. `limit` bounds the seconds of setup, and those that the work may take longer than it should. Latencies are in
 * microseconds: from upstream's send to our receipt of a paced message, or from the first byte sent to the last received
 * of a closed loop. */
#include "wire.h"

enum mode { HANDSHAKE, FLOOD, PACED, ECHO, LONGPOLL, IDLE, STALLED, MODES };
static const char *const mode_names[MODES] = {"handshake", "flood", "paced", "echo", "longpoll", "idle", "stalled"};

/* Where a client is on its way; up to READY is setup, except that a handshake loop goes from SHAKING to LEAVING. */
enum stage { UNUSED, CONNECTING, UPGRADING, SHAKING, SUBSCRIBING, READY, WAITING, LEAVING };

struct client {
    int fd;
    enum stage stage;
    bool watches_out, heard_close;
    struct bytes in, out;
    unsigned number;   /* of the next pushed message, modulo CYCLE */
    unsigned asked;    /* the id of what is waited for */
    uint64_t began;    /* when the operation began */
};

/* The example of RFC 6455, section 1.3; masks are random, but an answer that is known needs no SHA-1 here. */
#define KEY "dGhlIHNhbXBsZSBub25jZQ=="
#define ACCEPT "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

enum {
    AT_ONCE = 64, /* clients that are set up at the same time */
    READ_SIZE = 1 << 18,
    PAYLOAD_MAX = 65536,
    ECHO_FIXED = 95, /* what a publish holds beside its pad */
};

static enum mode mode;
static unsigned long port, upstream_port, count = 50, size = 500, rate = 5000, authn, limit = 30;
static unsigned group;
static struct client *clients;
static size_t opened, ready;
static int poller;
static uint64_t work_ends, done, pushed_total;
static char *expected; /* a pushed message */
static uint32_t *latencies;
static size_t latency_count, latency_room;

__attribute__((format(printf, 1, 2), noreturn)) static void fail(const char *format, ...)
{
    char text[400];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    printf("{\"failure\":\"");
    for (const char *p = text; *p; p++)
        if (*p == '"' || *p == '\\')
            printf("\\%c", *p);
        else
            putchar(*p < ' ' || *p > '~' ? ' ' : *p);
    printf("\"}\n");
    fflush(stdout);
    exit(1);
}

static void note_latency(uint64_t nanoseconds)
{
    if (latency_count == latency_room) {
        latency_room = latency_room ? latency_room * 2 : 1 << 16;
        latencies = realloc(latencies, latency_room * sizeof *latencies);
        if (!latencies)
            abort();
    }
    latencies[latency_count++] = nanoseconds > UINT32_MAX ? UINT32_MAX : (uint32_t)nanoseconds;
}

/* Sending ---------------------------------------------------------------------------------------------------------- */

static void watch(struct client *c, uint32_t events)
{
    struct epoll_event event = {events, {.ptr = c}};
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &event);
}

static void flush(struct client *c)
{
    while (c->out.size) {
        ssize_t n = send(c->fd, c->out.at, c->out.size, MSG_NOSIGNAL);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            break;
        if (n < 0)
            fail("a connection broke while we sent: %s", strerror(errno));
        bytes_drop(&c->out, (size_t)n);
    }
    bool waits = c->out.size > 0;
    if (waits != c->watches_out)
        watch(c, EPOLLIN | (waits ? EPOLLOUT : 0));
    c->watches_out = waits;
}

static void say(struct client *c, unsigned opcode, const char *payload, size_t payload_size)
{
    static uint32_t state = 2654435769u; /* xorshift: each frame has a mask of its own */
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    uint8_t key[4];
    memcpy(key, &state, sizeof key);
    frame_add(&c->out, opcode, payload, payload_size, key);
    flush(c);
}

static void begin_operation(struct client *c)
{
    c->began = now();
    c->asked++;
    c->stage = WAITING;
}

static void post(struct client *c, const char *payload, int payload_size)
{
    bytes_print(&c->out,
                "POST /notification/realtime HTTP/1.1\r\nHost: localhost:%lu\r\n"
                "Content-Type: application/json\r\n%sContent-Length: %d\r\n\r\n",
                port, authn ? "Authorization: Basic " TOKEN "\r\n" : "", payload_size);
    bytes_add(&c->out, payload, (size_t)payload_size);
    flush(c);
}

static void send_handshake(struct client *c)
{
    char payload[512];
    bool polls = mode == LONGPOLL;
    int n = snprintf(payload, sizeof payload,
                     "[{\"id\":\"0\",\"channel\":\"/meta/handshake\",\"version\":\"1.0\",\"minimumVersion\":\"1.0\","
                     "%s\"supportedConnectionTypes\":[\"%s\"]}]",
                     authn ? "\"ext\":{\"com.cumulocity.authn\":{\"token\":\"" TOKEN "\"}}," : "",
                     polls ? "long-polling" : "websocket");
    c->stage = SHAKING;
    if (polls)
        post(c, payload, n);
    else
        say(c, TEXT, payload, (size_t)n);
}

static void send_upgrade(struct client *c)
{
    c->stage = UPGRADING;
    bytes_print(&c->out,
                "GET /notification/realtime HTTP/1.1\r\nHost: localhost:%lu\r\nUpgrade: websocket\r\n"
                "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " KEY "\r\n\r\n",
                port);
    flush(c);
}

static void subscribe(struct client *c)
{
    char payload[256];
    c->stage = SUBSCRIBING;
    int n = snprintf(payload, sizeof payload,
                     "[{\"id\":\"0\",\"channel\":\"/meta/subscribe\",\"clientId\":\"bench\","
                     "\"subscription\":\"/bench/%08u\"}]",
                     group);
    say(c, TEXT, payload, (size_t)n);
}

static void poll_again(struct client *c)
{
    char payload[256];
    begin_operation(c);
    int n = snprintf(payload, sizeof payload,
                     "[{\"id\":\"%u\",\"channel\":\"/meta/connect\",\"clientId\":\"bench\","
                     "\"connectionType\":\"long-polling\"}]",
                     c->asked);
    post(c, payload, n);
}

/* A publish of `size` bytes. */
static void publish(struct client *c)
{
    static char payload[PAYLOAD_MAX];
    begin_operation(c);
    size_t pad = size - ECHO_FIXED;
    int n = snprintf(payload, sizeof payload,
                     "[{\"id\":\"%06u\",\"channel\":\"/service/echo\",\"clientId\":\"bench\","
                     "\"data\":{\"size\":\"%05zu\",\"pad\":\"",
                     c->asked, pad);
    for (size_t i = 0; i < pad; i++)
        payload[n++] = (char)('a' + i % 26);
    memcpy(payload + n, "\"}}]", 4);
    say(c, TEXT, payload, (size_t)n + 4);
}

/* Opening ---------------------------------------------------------------------------------------------------------- */

static void open_client(struct client *c)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    *c = (struct client){.stage = CONNECTING, .began = now()};
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0)
        fail("no socket: %s", strerror(errno));
    no_delay(c->fd);
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS)
        fail("no connection: %s", strerror(errno));
    c->watches_out = true;
    struct epoll_event event = {EPOLLIN | EPOLLOUT, {.ptr = c}};
    epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &event);
}

static void connected(struct client *c)
{
    int problem = 0;
    socklen_t length = sizeof problem;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &problem, &length);
    if (problem)
        fail("no connection: %s", strerror(problem));
    if (mode == LONGPOLL)
        send_handshake(c);
    else
        send_upgrade(c);
}

static void set_up(struct client *c)
{
    c->stage = READY;
    ready++;
    if (opened < count)
        open_client(&clients[opened++]);
}

/* Receiving -------------------------------------------------------------------------------------------------------- */

static bool contains(const char *at, size_t n, const char *text)
{
    return memmem(at, n, text, strlen(text)) != NULL;
}

/* Checks the answer to what is waited for. */
static void check_answer(const struct client *c, const char *payload, size_t n, const char *channel)
{
    char id[32];
    bool is_padded = mode == ECHO && c->stage == WAITING;
    snprintf(id, sizeof id, is_padded ? "\"id\":\"%06u\"" : "\"id\":\"%u\"", c->stage == WAITING ? c->asked : 0);
    if (n < 2 || *payload != '[' || payload[n - 1] != ']' || !contains(payload, n, channel) ||
        !contains(payload, n, id) || !contains(payload, n, "\"successful\":true"))
        fail("waiting for %s with %s: %.*s", channel, id, (int)(n < 200 ? n : 200), payload);
}

static void operation_done(struct client *c)
{
    done++;
    note_latency(now() - c->began);
    c->stage = READY;
}

static void pushed(struct client *c, const char *payload, size_t n, uint64_t when)
{
    pushed_number(expected, c->number);
    size_t after = SENT_AT + SENT_SIZE;
    if (n != size || memcmp(payload, expected, SENT_AT) || memcmp(payload + after, expected + after, size - after))
        fail("pushed message %u is not as it was sent: %zu bytes, %.*s", c->number, n, (int)(n < 99 ? n : 99), payload);
    c->number = (c->number + 1) % CYCLE;
    done++;
    if (mode == PACED)
        note_latency(when - pushed_when(payload));
}

static void on_text(struct client *c, const char *payload, size_t n, uint64_t when)
{
    if (c->stage == SHAKING) {
        check_answer(c, payload, n, "/meta/handshake");
        if (mode == HANDSHAKE) {
            c->stage = LEAVING;
            say(c, CLOSE, "\x03\xe8", 2);
        } else if (mode == ECHO) {
            set_up(c);
        } else {
            subscribe(c);
        }
    } else if (c->stage == SUBSCRIBING) {
        check_answer(c, payload, n, "/meta/subscribe");
        set_up(c);
        if (mode == STALLED)
            watch(c, 0);
    } else if (c->stage == WAITING) {
        check_answer(c, payload, n, "/service/echo");
        operation_done(c);
        if (now() < work_ends)
            publish(c);
    } else if (c->stage == READY && mode != ECHO && mode != IDLE) {
        pushed(c, payload, n, when);
    } else {
        fail("a message that nobody waited for: %.*s", (int)(n < 200 ? n : 200), payload);
    }
}

static size_t on_frame(struct client *c, char *at, size_t n, uint64_t when)
{
    struct frame frame;
    ssize_t whole = frame_read(at, n, false, &frame);
    if (whole < 0)
        fail("no frame of upstream's: %02x %02x", (uint8_t)at[0], (uint8_t)at[1]);
    if (whole == 0)
        return 0;
    if (frame.opcode == TEXT)
        on_text(c, frame.payload, frame.size, when);
    else if (frame.opcode == PING)
        say(c, PONG, frame.payload, frame.size);
    else if (frame.opcode == CLOSE && c->stage == LEAVING && frame.size >= 2 && !memcmp(frame.payload, "\x03\xe8", 2))
        c->heard_close = true;
    else
        fail("frame with opcode %u: %.*s", frame.opcode, (int)(frame.size > 2 ? frame.size - 2 : 0), frame.payload + 2);
    return (size_t)whole;
}

/* A body in chunks: returns the bytes it takes with what frames it, 0 where more is needed; the body is put together at
 * its beginning, and `body_size` is how long it is. */
static size_t unchunk(char *at, size_t n, size_t *body_size)
{
    size_t from = 0, to = 0;
    for (;;) {
        char *line_end = memmem(at + from, n - from, "\r\n", 2);
        if (!line_end)
            return 0;
        size_t chunk = strtoul(at + from, NULL, 16);
        from = (size_t)(line_end + 2 - at);
        if (n - from < chunk + 2)
            return 0;
        if (chunk == 0) {
            *body_size = to;
            return from + 2;
        }
        memmove(at + to, at + from, chunk);
        to += chunk;
        from += chunk + 2;
    }
}

static size_t on_answer(struct client *c, char *at, size_t n)
{
    static char copy[PAYLOAD_MAX];
    char *end = memmem(at, n, "\r\n\r\n", 4);
    if (!end)
        return 0;
    *end = 0; /* the head as a text */
    size_t head_size = (size_t)(end + 4 - at), body_size = 0, taken = head_size;
    const char *length = strcasestr(at, "\r\nContent-Length:");
    if (c->stage == UPGRADING) {
        if (strncmp(at, "HTTP/1.1 101", 12) || !strcasestr(at, "\r\nSec-WebSocket-Accept: " ACCEPT))
            fail("no upgrade: %s", at);
        send_handshake(c);
        return taken;
    }
    if (strncmp(at, "HTTP/1.1 200", 12))
        fail("no answer: %s", at);
    if (length) {
        body_size = strtoul(length + 17, NULL, 10);
        taken = n < head_size + body_size ? 0 : head_size + body_size;
        length = at + head_size;
    } else if (strcasestr(at, "\r\nTransfer-Encoding: chunked") && n - head_size < sizeof copy) {
        memcpy(copy, at + head_size, n - head_size); /* for it may not be whole yet */
        copy[n - head_size] = 0;
        taken = unchunk(copy, n - head_size, &body_size);
        taken = taken ? head_size + taken : 0;
        length = copy;
    } else {
        fail("an answer without a length: %s", at);
    }
    *end = '\r';
    if (!taken)
        return 0;
    if (c->stage == SHAKING) {
        check_answer(c, length, body_size, "/meta/handshake");
        set_up(c);
    } else if (c->stage == WAITING) {
        check_answer(c, length, body_size, "/meta/connect");
        operation_done(c);
        if (now() < work_ends)
            poll_again(c);
    } else {
        fail("an answer that nobody waited for");
    }
    return taken;
}

static void ended(struct client *c, int problem)
{
    if (c->stage != LEAVING || !c->heard_close || problem)
        fail("a connection ended in stage %d: %s", c->stage, problem ? strerror(problem) : "without a word");
    operation_done(c);
    close(c->fd);
    c->stage = UNUSED;
    bytes_release(&c->in);
    bytes_release(&c->out);
    if (now() < work_ends)
        open_client(c);
}

static void on_readable(struct client *c)
{
    static char scratch[READ_SIZE + 1];
    ssize_t came = recv(c->fd, scratch, READ_SIZE, 0);
    if (came < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (came <= 0) {
        ended(c, came < 0 ? errno : 0);
        return;
    }
    uint64_t when = now();
    char *at = scratch;
    size_t n = (size_t)came, used = 0, taken;
    bool joined = c->in.size > 0;
    scratch[n] = 0;
    if (joined) {
        bytes_add(&c->in, scratch, n);
        at = c->in.at;
        n = c->in.size;
    }
    while (used < n) {
        bool is_http = c->stage == UPGRADING || mode == LONGPOLL;
        taken = is_http ? on_answer(c, at + used, n - used) : on_frame(c, at + used, n - used, when);
        if (!taken)
            break;
        used += taken;
    }
    if (joined)
        bytes_drop(&c->in, used);
    else if (used < n)
        bytes_add(&c->in, at + used, n - used);
}

/* Working ---------------------------------------------------------------------------------------------------------- */

/* One turn of the loop, of at most 50 ms. */
static void turn(void)
{
    struct epoll_event events[256];
    int n = epoll_wait(poller, events, 256, 50);
    for (int i = 0; i < n; i++) {
        struct client *c = events[i].data.ptr;
        if (c->stage == CONNECTING) {
            connected(c);
            continue;
        }
        if (mode == STALLED && c->stage == READY)
            fail("a client that does not read was cut off");
        if (events[i].events & EPOLLOUT)
            flush(c);
        if (events[i].events & ~(uint32_t)EPOLLOUT)
            on_readable(c);
    }
}

/* Asks upstream itself for something, and returns the number that it answers. */
static unsigned long long ask_upstream(const char *what)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)upstream_port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    char text[512];
    size_t n = 0;
    ssize_t came;
    const char *body;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int request = snprintf(text, sizeof text, "POST /bench/%08u/%s HTTP/1.1\r\nHost: localhost\r\n\r\n", group, what);
    no_delay(fd);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) ||
        send(fd, text, (size_t)request, MSG_NOSIGNAL) != request)
        fail("upstream cannot be asked: %s", strerror(errno));
    do {
        came = recv(fd, text + n, sizeof text - 1 - n, 0);
        if (came <= 0)
            fail("upstream does not answer");
        text[n += (size_t)came] = 0;
        body = strstr(text, "\r\n\r\n");
    } while (!body || !body[4]);
    close(fd);
    return strtoull(body + 4, NULL, 10);
}

static void push(const char *what)
{
    unsigned long long members = ask_upstream(what);
    if (members != count)
        fail("of %lu clients upstream knows %llu", count, members);
}

static size_t in_use(enum stage stage)
{
    size_t n = 0;
    for (size_t i = 0; i < count; i++)
        n += clients[i].stage == stage;
    return n;
}

static void prepare(void)
{
    uint64_t give_up = now() + limit * 1000000000u;
    if (mode != HANDSHAKE) {
        while (opened < count && opened < AT_ONCE)
            open_client(&clients[opened++]);
        while (ready < count) {
            turn();
            if (now() > give_up)
                fail("only %zu of %lu clients are set up after %lu s", ready, count, limit);
        }
    }
    printf("{\"ready\":%zu}\n", ready);
    fflush(stdout);
}

/* Has every client do its part until the end of the work. */
static void closed_loop(uint64_t give_up, void (*begin)(struct client *), enum stage at_rest)
{
    for (size_t i = 0; i < count; i++)
        begin(&clients[i]);
    while (now() < work_ends || in_use(at_rest) < count) {
        turn();
        if (now() > give_up)
            fail("%zu operations are unanswered", count - in_use(at_rest));
    }
}

static void receive_pushed(uint64_t give_up)
{
    while (done < pushed_total) {
        turn();
        if (now() > give_up)
            fail("%llu of %llu messages came", (unsigned long long)done, (unsigned long long)pushed_total);
    }
    if (done > pushed_total)
        fail("%llu messages came, of %llu", (unsigned long long)done, (unsigned long long)pushed_total);
}

static void work(uint64_t milliseconds)
{
    char what[128];
    done = latency_count = 0;
    uint64_t start = now(), give_up = start + milliseconds * 1000000u + limit * 1000000000u;
    work_ends = start + milliseconds * 1000000u;
    switch (mode) {
    case HANDSHAKE:
        closed_loop(give_up, open_client, UNUSED);
        break;
    case ECHO:
        closed_loop(give_up, publish, READY);
        break;
    case LONGPOLL:
        closed_loop(give_up, poll_again, READY);
        break;
    case FLOOD:
        snprintf(what, sizeof what, "flood/%lu/%lu", size, 1000000000ul);
        for (size_t i = 0; i < count; i++)
            clients[i].number = 0;
        push(what);
        while (now() < work_ends)
            turn();
        pushed_total = ask_upstream("stop");
        receive_pushed(give_up);
        break;
    case PACED:
        pushed_total = rate * milliseconds / 1000;
        snprintf(what, sizeof what, "paced/%lu/%lu/%llu", size, rate, (unsigned long long)pushed_total);
        push(what);
        receive_pushed(give_up);
        break;
    case STALLED:
        snprintf(what, sizeof what, "flood/%lu/%lu", size, 40000000 / size);
        push(what); /* and so on as for idle */
        __attribute__((fallthrough));
    case IDLE:
        while (now() < work_ends)
            turn();
        break;
    case MODES:
        break;
    }
    uint64_t took = now() - start;
    printf("{\"done\":%llu,\"seconds\":%.6f", (unsigned long long)done, (double)took / 1e9);
}

static int ascending(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static void report(void)
{
    if (latency_count) {
        qsort(latencies, latency_count, sizeof *latencies, ascending);
        const uint32_t *last = latencies + latency_count - 1;
        printf(",\"p50\":%.1f,\"p99\":%.1f,\"max\":%.1f", latencies[latency_count / 2] / 1e3,
               *(last - latency_count / 100) / 1e3, *last / 1e3);
    }
    printf("}\n");
    fflush(stdout);
}

/* Reads what was held for the clients that did not read: what comes must be right, too. */
static void read_stalled(void)
{
    for (size_t i = 0; i < count; i++) {
        uint64_t before = done;
        mode = FLOOD;
        watch(&clients[i], EPOLLIN);
        on_readable(&clients[i]);
        mode = STALLED;
        if (done == before)
            fail("nothing was held for a client that does not read");
    }
}

static void parse(int argc, char **argv)
{
    const struct { const char *name; unsigned long *value; } options[] = {
        {"port", &port}, {"upstream", &upstream_port}, {"clients", &count},
        {"size", &size}, {"rate", &rate}, {"authn", &authn}, {"limit", &limit},
    };
    for (mode = 0; mode < MODES && (argc < 2 || strcmp(argv[1], mode_names[mode])); mode++)
        ;
    bool is_understood = mode < MODES;
    for (int i = 2; i < argc && is_understood; i++) {
        const size_t known = sizeof options / sizeof *options, n = strcspn(argv[i], "=");
        size_t k = 0;
        while (k < known && (strlen(options[k].name) != n || memcmp(options[k].name, argv[i], n)))
            k++;
        is_understood = k < known && argv[i][n] == '=';
        if (is_understood)
            *options[k].value = strtoul(argv[i] + n + 1, NULL, 10);
    }
    if (!is_understood || !port || !upstream_port || !count || size < PUSHED_MIN || size > PAYLOAD_MAX / 2 || !rate) {
        fprintf(stderr, "load MODE port=PORT upstream=PORT [clients=N] [size=BYTES] [rate=N] [authn=1] [limit=S]\n");
        exit(2);
    }
}

int main(int argc, char **argv)
{
    parse(argc, argv);
    signal(SIGPIPE, SIG_IGN);
    open_files_max();
    poller = epoll_create1(EPOLL_CLOEXEC);
    group = (unsigned)getpid() % 100000000u;
    clients = calloc(count, sizeof *clients);
    expected = malloc(size);
    if (!clients || !expected)
        abort();
    pushed_template(expected, size, group);
    prepare();
    char line[32];
    while (fgets(line, sizeof line, stdin) && *line != 'e') {
        work(strtoul(line, NULL, 10));
        report();
    }
    if (mode == STALLED)
        read_stalled();
    return 0;
}
