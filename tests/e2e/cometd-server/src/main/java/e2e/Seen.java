package e2e;

import java.util.HashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import org.eclipse.jetty.util.ajax.JSON;

/** What arrived, for the tests to ask about; counts start anew with {@link #clear}. */
final class Seen {
    private int accepted;
    private int denied;
    private int unauthorized;
    private Map<String, Object> ext = Map.of();
    private Map<String, String> headers = Map.of();

    synchronized void clear() {
        accepted = 0;
        denied = 0;
        unauthorized = 0;
        ext = Map.of();
        headers = Map.of();
    }

    synchronized void handshake(boolean admitted, Map<String, Object> with) {
        if (admitted) {
            accepted++;
        } else {
            denied++;
        }
        ext = with;
    }

    synchronized void unauthorized() {
        unauthorized++;
    }

    /** Remembers the headers of the last upgrade or long-poll request, names in lower case. */
    synchronized void request(Map<String, List<String>> all) {
        headers = new HashMap<>();
        all.forEach((name, values) -> headers.put(name.toLowerCase(Locale.ROOT), String.join(", ", values)));
    }

    synchronized String json() {
        return new JSON().toJSON(Map.of("accepted", accepted, "denied", denied, "unauthorized", unauthorized,
            "ext", ext, "headers", headers));
    }
}
