# The image of c8y-realtime-proxy: `docker build .`, or deploy/image/build where there is no registry.
#
# BASE is any image of Debian's kind (with apt-get) that has `python3` 3.11 or newer, its venv module, and the certificate
# authorities of the public web in the system's store (those are what upstream is verified against). Name a digest here
# for a build to be repeated exactly. Both stages share it, since a virtual environment links to the interpreter that
# made it, and what is compiled fits that one only.
ARG BASE=python:3.11-slim-trixie

FROM ${BASE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /build

# The tools that make the wheel stay here, in an environment of their own: a compiler among them, for the hot rooms, and
# what the proxy needs, whose types mypyc reads.
COPY requirements/ requirements/
RUN apt-get update -qq \
    && apt-get install -qq -y --no-install-recommends gcc libc6-dev \
        $(test -e "$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" || echo python3-dev) \
    && python3 -m venv tools \
    && tools/bin/pip install --quiet --require-hashes -r requirements/build.txt -r requirements/compile.txt \
        -r requirements/run.txt

# What the proxy needs, without pip beside it. Wheels only: they run no code of theirs while they are installed. Bytecode
# is made once, below.
RUN python3 -m venv --without-pip /opt/c8y-realtime-proxy \
    && tools/bin/pip --python /opt/c8y-realtime-proxy/bin/python3 install --quiet --no-compile --only-binary :all: \
        --require-hashes -r requirements/run.txt

# The root is read-only later, so all bytecode is made now; unchecked, so that no copy's timestamps make it stale.
COPY pyproject.toml README.md LICENSE ./
COPY proxy/ proxy/
RUN HATCH_BUILD_HOOK_ENABLE_MYPYC=1 tools/bin/pip wheel --quiet --no-build-isolation --no-deps --wheel-dir dist . \
    && tools/bin/pip --python /opt/c8y-realtime-proxy/bin/python3 install --quiet --no-compile --no-index --no-deps \
        dist/*.whl \
    && /opt/c8y-realtime-proxy/bin/python3 -m compileall -q --invalidation-mode unchecked-hash \
        /opt/c8y-realtime-proxy/lib

FROM ${BASE}
ARG BASE
ARG VERSION=""
ARG REVISION=""
LABEL org.opencontainers.image.title="c8y-realtime-proxy" \
      org.opencontainers.image.description="An authenticating reverse proxy for Cumulocity real-time notifications: clients keep no keys. Listens on loopback unless configured otherwise." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${BASE}"

COPY --from=build /opt/c8y-realtime-proxy /opt/c8y-realtime-proxy
ENV PATH=/opt/c8y-realtime-proxy/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONDONTWRITEBYTECODE=1

# A number, so that Kubernetes can see that it is not root. Nothing in the image belongs to it: it writes nowhere.
USER 65532:65532

# Where the two listeners are by default: 8080 for clients, 9090 for metrics and probes. Both listen on *loopback* here
# as everywhere, and publishing a port does not change that. The first beyond loopback needs gate.hosts, which nobody
# but you can know (C8Y_REALTIME_PROXY__LISTEN__HOST with C8Y_REALTIME_PROXY__GATE__HOSTS); the second answers whoever
# reaches it, so that is also said where it is wanted (C8Y_REALTIME_PROXY__ADMIN__HOST, as in deploy/kubernetes).
EXPOSE 8080 9090

STOPSIGNAL SIGTERM

# Kubernetes probes on its own and ignores this. It needs no shell, and goes by the environment: where a configuration
# *file* moves the admin listener, give a health check of your own.
HEALTHCHECK --interval=30s --timeout=3s --start-period=10s --retries=3 \
    CMD ["python3", "-I", "-c", "import http.client, os, sys; variable = 'C8Y_REALTIME_PROXY__ADMIN__'; host = os.environ.get(variable + 'HOST', '127.0.0.1'); admin = http.client.HTTPConnection({'0.0.0.0': '127.0.0.1', '::': '::1'}.get(host, host), int(os.environ.get(variable + 'PORT', '9090')), timeout=2); admin.request('GET', '/livez'); sys.exit(admin.getresponse().status != 200)"]

ENTRYPOINT ["c8y-realtime-proxy"]
CMD ["run"]
