package e2e;

import java.nio.charset.StandardCharsets;
import java.util.Base64;
import java.util.HashMap;
import java.util.HashSet;
import java.util.Map;
import java.util.Set;
import java.util.function.Function;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.eclipse.jetty.util.ajax.JSON;

/**
 * Who may come in, as the platform documents it: Basic (with a TFA token where one is set), a JWT, or the cookie
 * "authorization" together with its XSRF token. Absent means empty here, so that nothing equals null by accident.
 * Whoever is not among them is known, perhaps, to the {@link #judge}: the rest of the platform.
 */
final class Accounts {
    private static final Pattern COOKIE = Pattern.compile("(?:^|;\\s*)authorization=\"?([^;\"]*)");

    private final Map<String, String> basic = new HashMap<>();
    private final Set<String> tokens = new HashSet<>();
    private final Map<String, String> xsrfByCookie = new HashMap<>();
    private volatile Judge judge = Judge.NOBODY;

    /** Reads {"basic": [{tenant, user, password, tfa}], "tokens": [jwt], "cookies": [{authorization, xsrf}]}. */
    Accounts(String json) {
        Map<?, ?> accounts = (Map<?, ?>)new JSON().fromJSON(json);
        for (Object entry : (Object[])accounts.get("basic")) {
            Map<?, ?> account = (Map<?, ?>)entry;
            String userPassword = account.get("tenant") + "/" + account.get("user") + ":" + account.get("password");
            String encoded = Base64.getEncoder().encodeToString(userPassword.getBytes(StandardCharsets.UTF_8));
            basic.put(encoded, text(account.get("tfa")));
        }
        for (Object token : (Object[])accounts.get("tokens")) {
            tokens.add((String)token);
        }
        for (Object entry : (Object[])accounts.get("cookies")) {
            Map<?, ?> cookie = (Map<?, ?>)entry;
            xsrfByCookie.put((String)cookie.get("authorization"), (String)cookie.get("xsrf"));
        }
    }

    /** Asks there from now on; nobody if that is null. */
    void ask(String url) {
        judge = url == null ? Judge.NOBODY : new Judge(url);
    }

    /** Whether the authn object of a handshake, and what came with the upgrade, prove somebody. */
    boolean admitAuthn(Map<?, ?> authn, Function<String, String> header) {
        String token = text(authn.get("token"));
        return admitBasic(token, text(authn.get("tfa"))) || tokens.contains(token)
            || admitCookie(header.apply("Cookie"), text(authn.get("xsrfToken"))) || judge.admits(authn, header);
    }

    /** Whether the headers of one long-poll request prove somebody. */
    boolean admitHeaders(Function<String, String> header) {
        return admitKnown(header) || judge.admits(null, header);
    }

    private boolean admitKnown(Function<String, String> header) {
        String authorization = text(header.apply("Authorization"));
        if (authorization.startsWith("Basic ")) {
            return admitBasic(authorization.substring(6), text(header.apply("tfatoken")));
        }
        if (authorization.startsWith("Bearer ")) {
            return tokens.contains(authorization.substring(7));
        }
        return admitCookie(header.apply("Cookie"), text(header.apply("X-XSRF-TOKEN")));
    }

    private boolean admitBasic(String encoded, String tfa) {
        return tfa.equals(basic.get(encoded));
    }

    private boolean admitCookie(String cookieHeader, String xsrf) {
        Matcher cookie = COOKIE.matcher(text(cookieHeader));
        return cookie.find() && xsrf.equals(xsrfByCookie.get(cookie.group(1)));
    }

    private static String text(Object value) {
        return value == null ? "" : value.toString();
    }
}
