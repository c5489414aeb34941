package e2e;

import jakarta.servlet.FilterChain;
import jakarta.servlet.ServletException;
import jakarta.servlet.http.HttpFilter;
import jakarta.servlet.http.HttpServletRequest;
import jakarta.servlet.http.HttpServletResponse;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.eclipse.jetty.util.ajax.JSON;

/** Long-polling proves itself with every request, not by its handshake alone: the platform answers 401 otherwise. */
final class LongPollFilter extends HttpFilter {
    private static final long serialVersionUID = 1L;

    private final transient Accounts accounts;
    private final transient Seen seen;

    LongPollFilter(Accounts accounts, Seen seen) {
        this.accounts = accounts;
        this.seen = seen;
    }

    @Override
    protected void doFilter(HttpServletRequest request, HttpServletResponse response, FilterChain chain)
        throws IOException, ServletException {
        Map<String, List<String>> headers = new HashMap<>();
        for (String name : Collections.list(request.getHeaderNames())) {
            headers.put(name, Collections.list(request.getHeaders(name)));
        }
        seen.request(headers);
        // The platform leaves the body of its answer empty for a client that accepts nothing in particular.
        if (request.getHeader("Accept") == null) {
            return;
        }
        // A handshake at its own path is the policy's business, whoever sends it.
        if (request.getRequestURI().endsWith("/handshake") || accounts.admitHeaders(request::getHeader)) {
            chain.doFilter(request, response);
            return;
        }
        List<Map<String, Object>> replies = new ArrayList<>();
        byte[] body = request.getInputStream().readAllBytes();
        Object batch = new JSON().fromJSON(new String(body, StandardCharsets.UTF_8));
        for (Object message : batch instanceof Object[] array ? array : new Object[] {batch}) {
            if (message instanceof Map<?, ?> map && "/meta/handshake".equals(map.get("channel"))) {
                replies.add(denial(map));
            }
        }
        if (replies.isEmpty()) {
            seen.unauthorized();
            response.setStatus(HttpServletResponse.SC_UNAUTHORIZED);
            return;
        }
        response.setContentType("application/json");
        response.setCharacterEncoding("UTF-8");
        response.getWriter().write(new JSON().toJSON(replies));
    }

    private Map<String, Object> denial(Map<?, ?> handshake) {
        seen.handshake(false, Map.of());
        Map<String, Object> reply = new HashMap<>();
        reply.put("channel", "/meta/handshake");
        reply.put("successful", false);
        reply.put("error", "403::Handshake denied");
        if (handshake.get("id") != null) {
            reply.put("id", handshake.get("id"));
        }
        return reply;
    }
}
