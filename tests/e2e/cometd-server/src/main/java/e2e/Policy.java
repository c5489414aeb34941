package e2e;

import java.util.HashMap;
import java.util.Map;
import org.cometd.bayeux.Channel;
import org.cometd.bayeux.Message;
import org.cometd.bayeux.server.BayeuxContext;
import org.cometd.bayeux.server.BayeuxServer;
import org.cometd.bayeux.server.ServerMessage;
import org.cometd.bayeux.server.ServerSession;
import org.cometd.server.DefaultSecurityPolicy;

/** Judges handshakes, and words their rejection as Cumulocity does. */
final class Policy extends DefaultSecurityPolicy implements BayeuxServer.Extension {
    private final Accounts accounts;
    private final Seen seen;

    Policy(Accounts accounts, Seen seen) {
        this.accounts = accounts;
        this.seen = seen;
    }

    @Override
    public boolean canHandshake(BayeuxServer server, ServerSession session, ServerMessage message) {
        if (session.isLocalSession()) {
            return true;
        }
        Map<String, Object> ext = message.getExt() == null ? Map.of() : new HashMap<>(message.getExt());
        BayeuxContext request = message.getBayeuxContext();
        boolean admitted;
        if ("websocket".equals(session.getServerTransport().getName())) {
            Object authn = ext.get("com.cumulocity.authn");
            admitted = accounts.admitAuthn(authn instanceof Map<?, ?> map ? map : Map.of(), request::getHeader);
        } else {
            admitted = accounts.admitHeaders(request::getHeader);
        }
        seen.handshake(admitted, ext);
        return admitted;
    }

    /** CometD says "403::handshake_denied" with the advice "none"; the platform documents this text and no advice. */
    @Override
    public boolean sendMeta(ServerSession to, ServerMessage.Mutable reply) {
        boolean handshake = Channel.META_HANDSHAKE.equals(reply.getChannel());
        if (handshake && "403::handshake_denied".equals(reply.get(Message.ERROR_FIELD))) {
            reply.put(Message.ERROR_FIELD, "403::Handshake denied");
            reply.remove(Message.ADVICE_FIELD);
        }
        return true;
    }
}
