package e2e;

import jakarta.servlet.http.HttpServlet;
import jakarta.servlet.http.HttpServletRequest;
import jakarta.servlet.http.HttpServletResponse;
import java.io.IOException;
import java.math.BigDecimal;
import java.util.HashMap;
import java.util.Map;
import org.cometd.bayeux.Promise;
import org.cometd.bayeux.server.BayeuxServer;
import org.cometd.bayeux.server.LocalSession;
import org.cometd.bayeux.server.ServerChannel;

/** The tests' own way in: /test/publish?channel=&first=&count=, /test/judge?url=, /test/seen and /test/clear. */
final class Desk extends HttpServlet {
    private static final long serialVersionUID = 1L;

    private final transient BayeuxServer bayeux;
    private final transient Accounts accounts;
    private final transient Seen seen;
    private transient LocalSession publisher;

    Desk(BayeuxServer bayeux, Accounts accounts, Seen seen) {
        this.bayeux = bayeux;
        this.accounts = accounts;
        this.seen = seen;
    }

    @Override
    protected void service(HttpServletRequest request, HttpServletResponse response) throws IOException {
        switch (request.getPathInfo()) {
            case "/publish" -> publish(request);
            case "/judge" -> accounts.ask(request.getParameter("url"));
            case "/clear" -> seen.clear();
            default -> { }
        }
        response.setContentType("application/json");
        response.setCharacterEncoding("UTF-8");
        response.getWriter().write(seen.json());
    }

    private synchronized void publish(HttpServletRequest request) {
        if (publisher == null) {
            publisher = bayeux.newLocalSession("publisher");
            publisher.handshake();
        }
        int first = Integer.parseInt(request.getParameter("first"));
        int count = Integer.parseInt(request.getParameter("count"));
        ServerChannel channel = bayeux.createChannelIfAbsent(request.getParameter("channel")).getReference();
        for (int number = first; number < first + count; number++) {
            Map<String, Object> measurement = new HashMap<>();
            measurement.put("number", number);
            measurement.put("text", "Grüße \uD83D\uDE80 \" \\ \u2028 \u0001");
            measurement.put("exact", new BigDecimal("12345678901234567890.123"));
            Map<String, Object> data = Map.of("realtimeAction", "CREATE", "data", measurement);
            channel.publish(publisher, data, Promise.noop());
        }
    }
}
