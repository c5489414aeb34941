/* A Bayeux upstream for the benchmark: one thread, epoll, as little work for each message as can be.
 *
 *   upstream PORT [TLS_PORT CERTIFICATE KEY]
 *
 * It listens on loopback, says "ready" on standard output, and ends with its standard input. Its clients are the proxies
 * that are measured, or the load generator itself. A client that subscribed to /bench/GROUP gets what a POST to the
 * upstream itself asks for, outside of all proxies:
 *
 *   POST /bench/GROUP/paced/SIZE/RATE/COUNT   COUNT messages of SIZE bytes, RATE a second, to one client after the other
 *   POST /bench/GROUP/flood/SIZE/COUNT        COUNT messages to each client, as fast as they are taken, 64 KiB a send
 *   POST /bench/GROUP/stop                    no more flood than what must follow to end the message that is begun
 *
 * The answer is the number of clients that the push goes to, and after a stop the number of messages pushed in all. */
#include "wire.h"

#include <openssl/err.h>
#include <openssl/sha.h>
#include <openssl/ssl.h>
#include <sys/timerfd.h>

enum { READ_SIZE = 65536, SEND_SIZE = 65536, PACED_AT_ONCE = 256, HEAD_SIZE = 8192 };

struct client {
    int fd;
    SSL *tls; /* NULL for a plain one */
    bool is_websocket, has_handshaken;
    bool is_leaving; /* a close frame came: nothing is read any more, and after what is owed the sending side closes */
    bool has_left;
    bool is_lost;    /* to be closed at the end of this turn */
    bool watches_out;
    struct bytes in, out;
    unsigned group;               /* 0: of none */
    unsigned number;              /* of the next paced message */
    uint64_t flood_at, flood_end; /* in bytes of frames since the flood began; equal when there is none */
};

static struct client **clients; /* by file descriptor */
static size_t clients_room;
static int poller, timer;

/* The push that is on; one at a time. */
static struct {
    unsigned group;
    size_t size, frame_size;
    struct bytes frame; /* one message as it goes out, but for its number and its time */
    char *ring; /* flood: the frames of a cycle, and the beginning once more so that every send is one piece */
    size_t ring_size;
    uint64_t paced_left, due;
    unsigned *members; /* file descriptors */
    size_t count, next;
} push;

/* Sockets ---------------------------------------------------------------------------------------------------------- */

/* Returns the number of bytes, 0 when there are none yet, -1 at the end of the connection. */
static ssize_t take(struct client *c, char *to, size_t size)
{
    if (!c->tls) {
        ssize_t n = recv(c->fd, to, size, 0);
        return n > 0 ? n : n < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -1;
    }
    ERR_clear_error();
    int n = SSL_read(c->tls, to, (int)size);
    if (n > 0)
        return n;
    int why = SSL_get_error(c->tls, n);
    return why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE ? 0 : -1;
}

static ssize_t give(struct client *c, const char *from, size_t size)
{
    if (!c->tls) {
        ssize_t n = send(c->fd, from, size, MSG_NOSIGNAL);
        return n >= 0 ? n : errno == EAGAIN || errno == EINTR ? 0 : -1;
    }
    ERR_clear_error();
    int n = SSL_write(c->tls, from, (int)size);
    if (n > 0)
        return n;
    int why = SSL_get_error(c->tls, n);
    return why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE ? 0 : -1;
}

static void watch(struct client *c, bool out)
{
    if (c->watches_out == out)
        return;
    c->watches_out = out;
    struct epoll_event event = {EPOLLIN | (out ? EPOLLOUT : 0), {.fd = c->fd}};
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &event);
}

/* Sends what is owed, or one piece of the flood: one, so that all clients get their share. A reply waits for the end of
 * a flood, for it must not stand within a frame. */
static void flush(struct client *c)
{
    if (c->is_lost)
        return;
    if (c->flood_at < c->flood_end) {
        uint64_t left = c->flood_end - c->flood_at;
        ssize_t n = give(c, push.ring + c->flood_at % push.ring_size, left < SEND_SIZE ? left : SEND_SIZE);
        if (n < 0)
            c->is_lost = true;
        else
            c->flood_at += (uint64_t)n;
    } else {
        while (c->out.size && !c->is_lost) {
            ssize_t n = give(c, c->out.at, c->out.size);
            if (n < 0)
                c->is_lost = true;
            else if (n == 0)
                break;
            else
                bytes_drop(&c->out, (size_t)n);
        }
    }
    bool owes = c->out.size || c->flood_at < c->flood_end;
    if (c->is_leaving && !owes && !c->has_left) {
        c->has_left = true;
        if (c->tls)
            SSL_shutdown(c->tls);
        shutdown(c->fd, SHUT_WR);
    }
    watch(c, owes);
}

static void close_if_lost(struct client *c)
{
    if (!c->is_lost)
        return;
    SSL_free(c->tls);
    close(c->fd);
    clients[c->fd] = NULL;
    bytes_release(&c->in);
    bytes_release(&c->out);
    free(c);
}

/* Pushing ---------------------------------------------------------------------------------------------------------- */

static void begin_push(unsigned group, size_t size)
{
    push.group = group;
    push.size = size;
    push.count = push.next = 0;
    push.due = push.paced_left = 0;
    push.members = realloc(push.members, clients_room * sizeof *push.members);
    for (size_t fd = 0; fd < clients_room; fd++)
        if (clients[fd] && clients[fd]->group == group)
            push.members[push.count++] = (unsigned)fd;
    uint8_t head[HEAD_MAX];
    push.frame.size = 0;
    bytes_add(&push.frame, head, frame_head(head, TEXT, size, false));
    pushed_template(bytes_reserve(&push.frame, size), size, group);
    push.frame_size = push.frame.size += size;
}

static struct client *member(size_t i)
{
    struct client *c = clients[push.members[i]];
    return c && c->group == push.group ? c : NULL;
}

static void begin_paced(uint64_t rate, uint64_t count)
{
    push.paced_left = push.count ? count : 0;
    long interval = 1000000000L / (long)(rate ? rate : 1);
    struct timespec each = {interval / 1000000000L, interval % 1000000000L};
    timerfd_settime(timer, 0, &(struct itimerspec){each, each}, NULL);
}

/* Sends the paced messages that are due, each in a send of its own. */
static void pace(void)
{
    uint64_t passed = 0;
    if (read(timer, &passed, sizeof passed) != (ssize_t)sizeof passed)
        return;
    push.due += passed;
    for (int n = 0; n < PACED_AT_ONCE && push.due && push.paced_left; n++, push.due--, push.paced_left--) {
        struct client *c = member(push.next);
        push.next = (push.next + 1) % push.count;
        if (!c)
            continue;
        char *message = push.frame.at + push.frame_size - push.size;
        pushed_number(message, c->number);
        pushed_sent(message, now());
        c->number = (c->number + 1) % CYCLE;
        if (c->out.size) { /* the kernel takes no more: behind what waits already */
            bytes_add(&c->out, push.frame.at, push.frame_size);
        } else {
            ssize_t sent = give(c, push.frame.at, push.frame_size);
            if (sent < 0)
                c->is_lost = true;
            else if ((size_t)sent < push.frame_size)
                bytes_add(&c->out, push.frame.at + sent, push.frame_size - (size_t)sent);
        }
        watch(c, c->out.size);
        close_if_lost(c);
    }
    if (!push.paced_left)
        timerfd_settime(timer, 0, &(struct itimerspec){0}, NULL);
}

static void begin_flood(uint64_t count)
{
    struct bytes ring = {0};
    for (unsigned i = 0; i < CYCLE; i++) {
        bytes_add(&ring, push.frame.at, push.frame_size);
        pushed_number(ring.at + ring.size - push.size, i);
    }
    push.ring_size = ring.size;
    while (ring.size < push.ring_size + SEND_SIZE) {
        bytes_reserve(&ring, SEND_SIZE); /* first, so that what is copied does not move */
        bytes_add(&ring, ring.at + ring.size - push.ring_size, push.ring_size < SEND_SIZE ? push.ring_size : SEND_SIZE);
    }
    free(push.ring);
    push.ring = ring.at;
    for (size_t i = 0; i < push.count; i++) {
        struct client *c = member(i);
        c->flood_at = 0;
        c->flood_end = count * push.frame_size;
        flush(c);
        close_if_lost(c);
    }
}

/* Lets every flood end with a whole message. OpenSSL wants a send that it could not do to be tried again with no less:
 * so the end is at least one send ahead. */
static uint64_t stop_flood(void)
{
    uint64_t messages = 0;
    for (size_t i = 0; i < push.count; i++) {
        struct client *c = member(i);
        if (!c)
            continue;
        uint64_t end = (c->flood_at + SEND_SIZE + push.frame_size - 1) / push.frame_size * push.frame_size;
        if (end < c->flood_end)
            c->flood_end = end;
        messages += c->flood_end / push.frame_size;
    }
    return messages;
}

/* JSON: just enough to find things in what is well formed and ends in a NUL ---------------------------------------- */

static const char *space_end(const char *p)
{
    return p + strspn(p, " \t\r\n");
}

static const char *string_end(const char *p)
{
    for (p++; *p && *p != '"'; p++)
        if (*p == '\\' && p[1])
            p++;
    return *p ? p + 1 : p;
}

static const char *value_end(const char *p)
{
    int depth = 0;
    while (*p) {
        if (*p == '"') {
            p = string_end(p);
            if (!depth)
                return p;
            continue;
        }
        if (*p == '{' || *p == '[') {
            depth++;
        } else if (*p == '}' || *p == ']') {
            if (depth == 0)
                return p;
            if (--depth == 0)
                return p + 1;
        } else if (*p == ',' && depth == 0) {
            return p;
        }
        p++;
    }
    return p;
}

/* The value under a key of an object, or "" where there is none. */
static const char *under(const char *object, const char *key)
{
    size_t size = strlen(key);
    if (*object != '{')
        return "";
    for (const char *p = space_end(object + 1); *p == '"';) {
        const char *end = string_end(p);
        bool found = (size_t)(end - p) == size + 2 && memcmp(p + 1, key, size) == 0;
        p = space_end(end);
        if (*p != ':')
            break;
        p = space_end(p + 1);
        if (found)
            return p;
        p = space_end(value_end(p));
        if (*p == ',')
            p = space_end(p + 1);
    }
    return "";
}

static bool says(const char *value, const char *text)
{
    size_t size = strlen(text);
    return *value == '"' && strncmp(value + 1, text, size) == 0 && value[1 + size] == '"';
}

/* Bayeux ----------------------------------------------------------------------------------------------------------- */

/* Answers one message; `trusted` tells that a credential came with the request itself. */
static void answer_message(struct client *c, const char *message, bool trusted, struct bytes *answer)
{
    const char *channel = under(message, "channel"), *id = under(message, "id");
    int channel_size = (int)(string_end(channel) - channel), id_size = (int)(value_end(id) - id);
    if (*channel != '"' || channel_size > 200 || id_size > 50) {
        bytes_print(answer, "{\"successful\":false,\"error\":\"400::Bad message\"}");
        return;
    }
    bytes_print(answer, "{\"channel\":%.*s,", channel_size, channel);
    if (id_size)
        bytes_print(answer, "\"id\":%.*s,", id_size, id);
    if (says(channel, "/meta/handshake")) {
        static unsigned handshakes;
        if (trusted || says(under(under(under(message, "ext"), "com.cumulocity.authn"), "token"), TOKEN)) {
            c->has_handshaken = true;
            bytes_print(answer,
                        "\"version\":\"1.0\",\"minimumVersion\":\"1.0\",\"clientId\":\"bench%08x\","
                        "\"supportedConnectionTypes\":[\"websocket\",\"long-polling\"],\"successful\":true}",
                        ++handshakes);
        } else {
            bytes_print(answer, "\"successful\":false,\"error\":\"401::No or wrong credential\"}");
        }
    } else if (!(c->is_websocket ? c->has_handshaken : trusted)) {
        bytes_print(answer, "\"successful\":false,\"error\":\"402::Unknown client\"}");
    } else if (says(channel, "/meta/subscribe")) {
        sscanf(under(message, "subscription"), "\"/bench/%u\"", &c->group);
        bytes_print(answer, "\"successful\":true}");
    } else if (says(channel, "/meta/connect")) {
        bytes_print(answer, "\"successful\":true,\"advice\":{\"reconnect\":\"retry\",\"interval\":0}}");
    } else if (says(channel, "/service/echo")) {
        const char *data = under(message, "data"), *pad = under(data, "pad");
        size_t size = (size_t)(string_end(pad) - pad), told = 0;
        sscanf(under(data, "size"), "\"%zu\"", &told);
        bool whole = *pad == '"' && size == told + 2 && pad_is_whole(pad + 1, told);
        bytes_print(answer, "\"successful\":%s}", whole ? "true" : "false");
    } else {
        bytes_print(answer, "\"successful\":true}");
    }
}

/* Answers one payload, which ends in a NUL. */
static void answer_payload(struct client *c, const char *payload, bool trusted, struct bytes *answer)
{
    const char *p = space_end(payload);
    bytes_add(answer, "[", 1);
    if (*p == '[')
        p = space_end(p + 1);
    while (*p == '{') {
        if (answer->size > 1)
            bytes_add(answer, ",", 1);
        answer_message(c, p, trusted, answer);
        p = space_end(value_end(p));
        if (*p == ',')
            p = space_end(p + 1);
    }
    bytes_add(answer, "]", 1);
}

/* What came on a WebSocket: returns the bytes that were taken. */
static size_t on_frame(struct client *c, char *at, size_t size)
{
    static struct bytes payload, answer;
    struct frame frame;
    ssize_t n = frame_read(at, size, true, &frame);
    if (n < 0)
        c->is_lost = true;
    if (n <= 0)
        return 0;
    if (frame.opcode == CLOSE) {
        frame_add(&c->out, CLOSE, frame.payload, frame.size, NULL);
        c->is_leaving = true;
    } else if (frame.opcode == PING) {
        frame_add(&c->out, PONG, frame.payload, frame.size, NULL);
    } else if (frame.opcode == TEXT) {
        payload.size = answer.size = 0;
        bytes_add(&payload, frame.payload, frame.size);
        answer_payload(c, payload.at, false, &answer);
        frame_add(&c->out, TEXT, answer.at, answer.size, NULL);
    } else if (frame.opcode != PONG) {
        c->is_lost = true;
    }
    return (size_t)n;
}

/* HTTP ------------------------------------------------------------------------------------------------------------- */

/* A header's value and, in `size`, how long it is; NULL where there is none. `name` is "\r\nName:". */
static const char *header(const char *head, const char *name, size_t *size)
{
    const char *found = strcasestr(head, name);
    if (!found)
        return NULL;
    found += strlen(name);
    found += strspn(found, " \t");
    *size = strcspn(found, "\r");
    return found;
}

static void respond(struct client *c, const char *status, const char *body, size_t size)
{
    bytes_print(&c->out, "HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n", status, size);
    bytes_add(&c->out, body, size);
}

static void accept_upgrade(struct client *c, const char *key, size_t size)
{
    char joined[128];
    unsigned char digest[SHA_DIGEST_LENGTH], accepted[64];
    int n = snprintf(joined, sizeof joined, "%.*s258EAFA5-E914-47DA-95CA-C5AB0DC85B11", (int)(size < 64 ? size : 64),
                     key); /* RFC 6455, section 4.2.2 */
    SHA1((unsigned char *)joined, (size_t)n, digest);
    EVP_EncodeBlock(accepted, digest, sizeof digest);
    bytes_print(&c->out, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                "Sec-WebSocket-Accept: %s\r\n\r\n", accepted);
    c->is_websocket = true;
}

/* What the load generator asks for: which clients get what. */
static void control(struct client *c, const char *path)
{
    unsigned group = 0;
    unsigned long long size, rate, count, n = 0;
    if (sscanf(path, "/bench/%u/paced/%llu/%llu/%llu", &group, &size, &rate, &count) == 4) {
        begin_push(group, size);
        begin_paced(rate, count);
        n = push.count;
    } else if (sscanf(path, "/bench/%u/flood/%llu/%llu", &group, &size, &count) == 3) {
        begin_push(group, size);
        begin_flood(count);
        n = push.count;
    } else {
        n = stop_flood();
    }
    char body[32];
    respond(c, "200 OK", body, (size_t)snprintf(body, sizeof body, "%llu", n));
}

static size_t on_request(struct client *c, char *at, size_t size)
{
    static struct bytes payload, answer;
    static char head[HEAD_SIZE];
    const char *end = memmem(at, size, "\r\n\r\n", 4);
    if (!end || end + 4 - at >= HEAD_SIZE) {
        c->is_lost = size >= HEAD_SIZE;
        return 0;
    }
    size_t head_size = (size_t)(end + 4 - at), n = 0;
    memcpy(head, at, head_size);
    head[head_size] = 0;
    const char *value = header(head, "\r\nContent-Length:", &n);
    size_t body_size = value ? strtoul(value, NULL, 10) : 0;
    if (size < head_size + body_size)
        return 0;
    const char *path = head + strcspn(head, " ");
    path += *path == ' ';
    bool is_endpoint = !strncmp(path, "/notification/", 14) || !strncmp(path, "/cep/", 5) ||
                       !strncmp(path, "/devicecontrol/", 15);
    if (strncmp(path, "/bench/", 7) == 0) {
        control(c, path);
    } else if (is_endpoint && (value = header(head, "\r\nSec-WebSocket-Key:", &n)) != NULL) {
        accept_upgrade(c, value, n);
    } else if (is_endpoint && strncmp(head, "POST ", 5) == 0 && !header(head, "\r\nTransfer-Encoding:", &n)) {
        value = header(head, "\r\nAuthorization:", &n);
        bool trusted = value && n == strlen("Basic " TOKEN) && strncmp(value, "Basic " TOKEN, n) == 0;
        payload.size = answer.size = 0;
        bytes_add(&payload, at + head_size, body_size);
        answer_payload(c, payload.at, trusted, &answer);
        respond(c, "200 OK", answer.at, answer.size);
    } else {
        respond(c, "404 Not Found", "", 0);
    }
    return head_size + body_size;
}

/* The loop --------------------------------------------------------------------------------------------------------- */

static void on_readable(struct client *c)
{
    static char scratch[READ_SIZE];
    do {
        ssize_t came = take(c, scratch, sizeof scratch);
        if (came < 0)
            c->is_lost = true;
        if (came <= 0)
            break;
        if (c->is_leaving)
            continue;
        char *at = scratch;
        size_t size = (size_t)came, used = 0, n;
        if (c->in.size) {
            bytes_add(&c->in, scratch, size);
            at = c->in.at;
            size = c->in.size;
        }
        while (used < size && !c->is_lost && !c->is_leaving) {
            n = c->is_websocket ? on_frame(c, at + used, size - used) : on_request(c, at + used, size - used);
            if (n == 0)
                break;
            used += n;
        }
        if (c->in.size)
            bytes_drop(&c->in, used);
        else if (used < size)
            bytes_add(&c->in, at + used, size - used);
    } while (c->tls && !c->is_lost); /* OpenSSL may hold more, of which epoll knows nothing */
    if (!c->watches_out)
        flush(c);
}

static int listening(const char *port)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 4096)) {
        perror("upstream: cannot listen");
        exit(1);
    }
    struct epoll_event event = {EPOLLIN, {.fd = fd}};
    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
    return fd;
}

static void welcome(int listener, SSL_CTX *tls)
{
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct client *c = calloc(1, sizeof *c);
        if ((size_t)fd >= clients_room) {
            size_t room = (size_t)fd * 2 + 64;
            clients = realloc(clients, room * sizeof *clients);
            memset(clients + clients_room, 0, (room - clients_room) * sizeof *clients);
            clients_room = room;
        }
        no_delay(fd);
        c->fd = fd;
        clients[fd] = c;
        if (tls) {
            c->tls = SSL_new(tls);
            SSL_set_fd(c->tls, fd);
            SSL_set_accept_state(c->tls);
        }
        struct epoll_event event = {EPOLLIN, {.fd = fd}};
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
    }
}

static SSL_CTX *tls_context(const char *certificate, const char *key)
{
    SSL_CTX *tls = SSL_CTX_new(TLS_server_method());
    SSL_CTX_set_mode(tls, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_mode(tls, SSL_MODE_RELEASE_BUFFERS);
    if (SSL_CTX_use_certificate_chain_file(tls, certificate) != 1 ||
        SSL_CTX_use_PrivateKey_file(tls, key, SSL_FILETYPE_PEM) != 1) {
        ERR_print_errors_fp(stderr);
        exit(1);
    }
    return tls;
}

int main(int argc, char **argv)
{
    if (argc != 2 && argc != 5) {
        fprintf(stderr, "upstream PORT [TLS_PORT CERTIFICATE KEY]\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    open_files_max();
    poller = epoll_create1(EPOLL_CLOEXEC);
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    SSL_CTX *tls = argc == 5 ? tls_context(argv[3], argv[4]) : NULL;
    int plain_listener = listening(argv[1]), tls_listener = tls ? listening(argv[2]) : -1;
    struct epoll_event event = {EPOLLIN, {.fd = timer}};
    epoll_ctl(poller, EPOLL_CTL_ADD, timer, &event);
    event = (struct epoll_event){EPOLLIN, {.fd = STDIN_FILENO}};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, STDIN_FILENO, &event)) {
        perror("upstream: standard input must be a pipe");
        return 2;
    }
    puts("ready");
    fflush(stdout);
    for (;;) {
        struct epoll_event events[512];
        int n = epoll_wait(poller, events, 512, -1);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (fd == STDIN_FILENO) {
                return 0;
            } else if (fd == timer) {
                pace();
            } else if (fd == plain_listener || fd == tls_listener) {
                welcome(fd, fd == tls_listener ? tls : NULL);
            } else if (clients[fd]) { /* else closed earlier in this turn */
                struct client *c = clients[fd];
                if (events[i].events & EPOLLOUT)
                    flush(c);
                if (!c->is_lost && events[i].events & ~(uint32_t)EPOLLOUT)
                    on_readable(c);
                close_if_lost(c);
            }
        }
    }
}
