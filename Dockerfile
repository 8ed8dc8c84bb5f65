# A machine that tunes, compiles, runs and verifies without a board: docker build -t bitkiln .
FROM debian:trixie-slim

RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev python3-venv mmdebstrap debian-archive-keyring ca-certificates openssh-client
COPY . /opt/src
RUN python3 -m venv /opt/bitkiln && /opt/bitkiln/bin/pip install --no-cache-dir '/opt/src[toolchain]'
ENV PATH=/opt/bitkiln/bin:/usr/bin:/bin XDG_CACHE_HOME=/var/cache
RUN bitkiln fetch && bitkiln doctor
