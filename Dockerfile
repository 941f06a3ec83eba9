# bigbrotr, scheduler and worker in one image; compose.yaml says which of them a container runs.
#   docker build -t bigbrotr .
#   docker build -t bigbrotr --build-context build=DIR .    with programs that are built already, in DIR/out
FROM rust:1.95-slim-trixie AS build
WORKDIR /src
COPY . .
# Dependencies are kept between builds, in caches that are no part of an image.
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target,sharing=locked \
    cargo build --release --locked -p cli -p scheduler -p worker \
    && install -D -t /out target/release/bigbrotr target/release/scheduler target/release/worker

FROM debian:trixie-slim
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="bigbrotr" \
      org.opencontainers.image.description="Observes, archives and monitors Nostr relays" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# Nothing else is needed: root certificates and the shipped list are in the programs.
RUN groupadd -g 10001 bigbrotr && useradd -u 10001 -g 10001 -d /nonexistent -s /usr/sbin/nologin bigbrotr
COPY --from=build /out/ /usr/local/bin/
USER 10001:10001
EXPOSE 9100
STOPSIGNAL SIGTERM
# For a scheduler or worker; what ends by itself has no use for it.
HEALTHCHECK --interval=15s --timeout=5s --retries=4 --start-period=60s --start-interval=2s CMD ["bigbrotr", "health"]
CMD ["bigbrotr", "--help"]
