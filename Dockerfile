# The image of c8y-realtime-proxy: `docker build .`, or deploy/image/build, which does it with buildah, tests the wheel
# on its way, and needs no registry. docs/howto-image.md tells how to build, verify and run it.
#
# BASE is any image of Debian's kind (with apt-get) that has `python3` 3.11 or newer, its venv module, and the certificate
# authorities of the public web in the system's store (those are what upstream is verified against). Name a digest here
# for a build to be repeated exactly. All stages share it, since a virtual environment links to the interpreter that
# made it, and what is compiled fits that one only.
ARG BASE=python:3.13-slim-trixie

FROM ${BASE} AS base

# pip, and what writes the bill of materials, in an environment of their own that stays here.
FROM base AS tools
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /build
COPY requirements/sbom.txt requirements/
RUN python3 -m venv tools \
    && tools/bin/pip install --quiet --only-binary :all: --require-hashes -r requirements/sbom.txt

# The wheel, with a compiler for the hot rooms, and beside it what the proxy needs, whose types mypyc reads.
FROM tools AS compiled
RUN apt-get update -qq \
    && apt-get install -qq -y --no-install-recommends gcc libc6-dev \
        $(test -e "$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" || echo python3-dev)
COPY requirements/build.txt requirements/compile.txt requirements/run.txt requirements/
RUN tools/bin/pip install --quiet --require-hashes -r requirements/build.txt -r requirements/compile.txt \
        -r requirements/run.txt
COPY pyproject.toml README.md LICENSE ./
COPY proxy/ proxy/
RUN HATCH_BUILD_HOOK_ENABLE_MYPYC=1 tools/bin/pip wheel --quiet --no-build-isolation --no-deps --wheel-dir dist .

# Nothing but the wheel: `--target wheel --output DIRECTORY` takes it out, and `--build-context wheel=DIRECTORY` puts one in
# that was made before, by a Python of the same minor version. So what was tested is what goes into the image.
FROM scratch AS wheel
COPY --from=compiled /build/dist/ /

# The environment, without pip. Wheels only: they run no code of theirs while they are installed. The root is read-only
# later, so all bytecode is made now; unchecked, so that no copy's timestamps make it stale.
FROM tools AS installed
COPY requirements/run.txt requirements/
RUN python3 -m venv --without-pip /opt/c8y-realtime-proxy \
    && tools/bin/pip --python /opt/c8y-realtime-proxy/bin/python3 install --quiet --no-compile --only-binary :all: \
        --require-hashes --report needed.json -r requirements/run.txt
COPY --from=wheel / dist/
RUN tools/bin/pip --python /opt/c8y-realtime-proxy/bin/python3 install --quiet --no-compile --no-index --no-deps \
        --report own.json dist/*.whl \
    && find /opt/c8y-realtime-proxy/bin -type f ! -name c8y-realtime-proxy -delete \
    && chmod -R a-x+X /opt/c8y-realtime-proxy/lib \
    && /opt/c8y-realtime-proxy/bin/python3 -m compileall -q --invalidation-mode unchecked-hash \
        /opt/c8y-realtime-proxy/lib

# The tests of what is compiled, on the very files of the image: `--target tested`. No other stage needs this one.
FROM installed AS tested
COPY requirements/dev.txt requirements/
RUN tools/bin/pip --python /opt/c8y-realtime-proxy/bin/python3 install --quiet --require-hashes -r requirements/dev.txt
COPY pyproject.toml tested/
COPY tests/ tested/tests/
RUN cd tested && /opt/c8y-realtime-proxy/bin/python3 -m pytest -q -p no:cacheprovider -n auto --dist worksteal @tests/compiled.txt

# What of the base is needed, and the bill of materials.
FROM installed AS gathered
COPY deploy/image/root.py deploy/image/sbom.py ./
RUN python3 root.py /opt/c8y-realtime-proxy /root-of-the-image \
    && tools/bin/python sbom.py /opt/c8y-realtime-proxy /root-of-the-image needed.json own.json

# The bill of materials alone: `--target sbom --output DIRECTORY`.
FROM scratch AS sbom
COPY --from=gathered /root-of-the-image/usr/share/sbom/ /

FROM scratch
# deploy/image/build adds version, revision and time. The licences are many: the bill of materials names them.
LABEL org.opencontainers.image.title="c8y-realtime-proxy" \
      org.opencontainers.image.description="An authenticating reverse proxy for Cumulocity real-time notifications: clients keep no keys. Listens on loopback unless configured otherwise."
COPY --from=gathered /root-of-the-image/ /
# Those of the base itself: a build may have been lent its machine's.
COPY --from=base /etc/ssl/certs/ /etc/ssl/certs/
COPY --from=base /usr/share/ca-certificates/ /usr/share/ca-certificates/
COPY --from=installed /opt/c8y-realtime-proxy/ /opt/c8y-realtime-proxy/
ENV PATH=/opt/c8y-realtime-proxy/bin \
    PYTHONDONTWRITEBYTECODE=1

# A number, so that Kubernetes can see that it is not root. Nothing in the image belongs to it: it writes nowhere.
USER 65532:65532

# Where the two listeners are by default: 8080 for clients, 9090 for metrics and probes. Both listen on *loopback* here
# as everywhere, and publishing a port does not change that. The first beyond loopback needs gate.hosts, which nobody
# but you can know (C8Y_REALTIME_PROXY__LISTEN__HOST with C8Y_REALTIME_PROXY__GATE__HOSTS); the second answers whoever
# reaches it, so that is also said where it is wanted (C8Y_REALTIME_PROXY__ADMIN__HOST, as in deploy/kubernetes).
EXPOSE 8080 9090

STOPSIGNAL SIGTERM

# Kubernetes probes on its own and ignores this. It goes by the environment, and by the file that C8Y_REALTIME_PROXY_CONFIG
# names: with `--config` in the arguments of `run`, give a health check of your own that has it, too.
HEALTHCHECK --interval=30s --timeout=3s --start-period=10s --retries=3 \
    CMD ["c8y-realtime-proxy", "healthcheck"]

ENTRYPOINT ["c8y-realtime-proxy"]
CMD ["run"]
