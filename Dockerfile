# One image for every program: `tailrace ...`, `python -m collector ...`, `python -m worker ...`.
FROM python:3.13-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
# What the image can read beside files and webhooks; leave out what you do not need: --build-arg EXTRAS=github,rss
ARG EXTRAS=bluesky,github,rss,telegram,x,zstd
RUN python -m venv /opt/tailrace
WORKDIR /src
# The dependencies alone first: this layer changes only with pyproject.toml.
COPY pyproject.toml ./
RUN mkdir collector worker ops sql \
 && /opt/tailrace/bin/pip install --quiet ".[$EXTRAS]" \
 && /opt/tailrace/bin/pip uninstall --quiet --yes tailrace
COPY sql sql
COPY worker worker
COPY collector collector
COPY ops ops
RUN /opt/tailrace/bin/pip install --quiet --no-deps . \
 && /opt/tailrace/bin/pip uninstall --quiet --yes pip

FROM python:3.13-slim-bookworm
RUN useradd --uid 10001 --user-group --create-home --home-dir /home/tailrace --shell /usr/sbin/nologin tailrace \
 && mkdir -p /etc/tailrace /inbox && chown tailrace:tailrace /inbox
COPY --from=build /opt/tailrace /opt/tailrace
ENV PATH=/opt/tailrace/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    TAILRACE_COLLECTOR__HOST=0.0.0.0 \
    TAILRACE_WORKER__HOST=0.0.0.0
USER 10001:10001
WORKDIR /etc/tailrace
ENTRYPOINT []
CMD ["tailrace", "--help"]
