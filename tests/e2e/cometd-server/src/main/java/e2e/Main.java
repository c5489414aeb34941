package e2e;

import jakarta.servlet.DispatcherType;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.util.EnumSet;
import java.util.List;
import java.util.stream.Collectors;
import org.cometd.bayeux.server.BayeuxServer;
import org.cometd.server.BayeuxServerImpl;
import org.cometd.server.http.JSONHttpTransport;
import org.cometd.server.http.jakarta.CometDServlet;
import org.cometd.server.websocket.common.AbstractWebSocketTransport;
import org.cometd.server.websocket.jetty.JettyWebSocketTransport;
import org.eclipse.jetty.ee10.servlet.FilterHolder;
import org.eclipse.jetty.ee10.servlet.ServletContextHandler;
import org.eclipse.jetty.ee10.servlet.ServletHolder;
import org.eclipse.jetty.http.HttpField;
import org.eclipse.jetty.http.HttpFields;
import org.eclipse.jetty.server.Context;
import org.eclipse.jetty.server.Server;
import org.eclipse.jetty.server.ServerConnector;
import org.eclipse.jetty.websocket.server.ServerUpgradeRequest;
import org.eclipse.jetty.websocket.server.ServerUpgradeResponse;
import org.eclipse.jetty.websocket.server.WebSocketUpgradeHandler;

/**
 * The CometD server on Cumulocity's paths. Argument: the port on loopback, 0 for any. The first line of stdin holds
 * the accounts; when stdin ends, so does the server: it cannot outlive the tests that started it.
 */
public final class Main {
    private static final List<String> PATHS = List.of("/notification/realtime", "/cep/realtime");

    private Main() {
    }

    public static void main(String[] args) throws Exception {
        BufferedReader stdin = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        Accounts accounts = new Accounts(stdin.readLine());
        Seen seen = new Seen();
        Policy policy = new Policy(accounts, seen);

        Server server = new Server();
        ServerConnector connector = new ServerConnector(server);
        connector.setHost("127.0.0.1");
        connector.setPort(Integer.parseInt(args[0]));
        server.addConnector(connector);
        ServletContextHandler context = new ServletContextHandler();
        server.setHandler(context);
        context.insertHandler(WebSocketUpgradeHandler.from(server, context));

        BayeuxServerImpl bayeux = new BayeuxServerImpl();
        bayeux.addTransport(new WebSocketTransport(bayeux, seen));
        bayeux.addTransport(new JSONHttpTransport(bayeux));
        bayeux.setOption(Context.class.getName(), context.getContext());
        bayeux.setOption("ws." + AbstractWebSocketTransport.COMETD_URL_MAPPING_OPTION, String.join(",", PATHS));
        bayeux.setSecurityPolicy(policy);
        bayeux.addExtension(policy);
        context.setAttribute(BayeuxServer.ATTRIBUTE, bayeux);

        ServletHolder cometd = new ServletHolder(new CometDServlet());
        cometd.setAsyncSupported(true);
        cometd.setInitOrder(1);
        FilterHolder filter = new FilterHolder(new LongPollFilter(accounts, seen));
        filter.setAsyncSupported(true);
        for (String path : PATHS) {
            context.addServlet(cometd, path + "/*");
            context.addFilter(filter, path + "/*", EnumSet.of(DispatcherType.REQUEST));
        }
        context.addServlet(new ServletHolder(new Desk(bayeux, accounts, seen)), "/test/*");
        server.start();
        System.out.println("listening " + connector.getLocalPort());

        while (stdin.readLine() != null) { }
        // Halted, not stopped: to its clients this is a crash.
        Runtime.getRuntime().halt(0);
    }

    /** Tells what an upgrade brought. */
    private static final class WebSocketTransport extends JettyWebSocketTransport {
        private final Seen seen;

        WebSocketTransport(BayeuxServerImpl bayeux, Seen seen) {
            super(bayeux);
            this.seen = seen;
        }

        @Override
        protected void modifyUpgrade(ServerUpgradeRequest request, ServerUpgradeResponse response) {
            HttpFields fields = request.getHeaders();
            seen.request(fields.stream().collect(Collectors.toMap(HttpField::getLowerCaseName,
                field -> fields.getValuesList(field.getName()), (one, same) -> one)));
        }
    }
}
