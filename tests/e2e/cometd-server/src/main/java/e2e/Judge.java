package e2e;

import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.time.Duration;
import java.util.HashMap;
import java.util.Map;
import java.util.function.Function;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.eclipse.jetty.util.ajax.JSON;

/**
 * The rest of the platform, which knows the credentials that it gives out: it is told what came, and says yes with 204.
 */
class Judge {
    /** Knows nobody. */
    static final Judge NOBODY = new Judge(null) {
        @Override
        boolean admits(Map<?, ?> authn, Function<String, String> header) {
            return false;
        }
    };

    private static final Duration PATIENCE = Duration.ofSeconds(10);

    private final HttpClient client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
    private final String url;

    Judge(String url) {
        this.url = url;
    }

    /** Whether these headers prove somebody, together with the authn object of a handshake where there is one. */
    boolean admits(Map<?, ?> authn, Function<String, String> header) {
        Map<String, String> headers = Stream.of("Authorization", "Cookie", "X-XSRF-TOKEN", "tfatoken", "User-Agent")
            .filter(name -> header.apply(name) != null).collect(Collectors.toMap(name -> name, header));
        Map<String, Object> told = new HashMap<>(Map.of("headers", headers));
        told.put("authn", authn);
        HttpRequest question = HttpRequest.newBuilder(URI.create(url)).timeout(PATIENCE)
            .POST(HttpRequest.BodyPublishers.ofString(new JSON().toJSON(told))).build();
        try {
            return client.send(question, HttpResponse.BodyHandlers.discarding()).statusCode() == 204;
        } catch (IOException gone) {
            return false;
        } catch (InterruptedException stopped) {
            Thread.currentThread().interrupt();
            return false;
        }
    }
}
