// A relay server around the npm packages @nostr-relay/*: they bring the protocol, this brings the socket and NIP-11.
// PORT: its port; HOST: the address it listens on (default: loopback); DB: SQLite file (default: memory); AUTH=1: NIP-42 on.
'use strict';
const http = require('http');
const { WebSocketServer } = require('ws');
const { NostrRelay } = require('@nostr-relay/core');
const { Validator } = require('@nostr-relay/validator');
const { EventRepositorySqlite } = require('@nostr-relay/event-repository-sqlite');

const MAX_FRAME_BYTES = 256 * 1024;
const INFO = JSON.stringify({
  name: 'nostr-relay-ts',
  software: 'https://github.com/CodyTseng/nostr-relay',
  supported_nips: [1, 2, 11, 42],
});

async function main() {
  const port = Number(process.env.PORT || 7447);
  const repository = new EventRepositorySqlite(process.env.DB || ':memory:');
  if (repository.init) await repository.init();
  const relay = new NostrRelay(repository, process.env.AUTH ? { hostname: '127.0.0.1' } : {});
  const validator = new Validator();

  const server = http.createServer((_request, response) => {
    response.setHeader('content-type', 'application/nostr+json');
    response.end(INFO);
  });
  const sockets = new WebSocketServer({ server, maxPayload: MAX_FRAME_BYTES });
  sockets.on('connection', (socket) => {
    relay.handleConnection(socket);
    socket.on('message', async (data) => {
      try {
        await relay.handleMessage(socket, await validator.validateIncomingMessage(data.toString()));
      } catch (error) {
        socket.send(JSON.stringify(['NOTICE', error.message]));
      }
    });
    socket.on('error', () => {});
    socket.on('close', () => relay.handleDisconnect(socket));
  });
  server.listen(port, process.env.HOST || '127.0.0.1', () => console.log('listening', port));
}

main();
