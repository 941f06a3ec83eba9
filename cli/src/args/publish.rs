//! What can be asked about publishing.

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(crate) enum Publish {
    /// Per publishing relay: what it has accepted and refused, with its words, and what is on its way
    #[command(after_help = "EXAMPLES:
  bigbrotr publish status
  bigbrotr publish status --json

Exit code 1 when a relay refuses, or cannot be reached.")]
    Status,
    /// Look at a relay now and print the event that would be published; without one, what we say of ourselves
    #[command(after_help = "EXAMPLES:
  bigbrotr publish preview wss://relay.example
  bigbrotr publish preview                     kinds 10166, 10002 and 0
  BIGBROTR_IDENTITY_KEY=nsec1… bigbrotr publish preview wss://relay.example

Signed when the environment holds a key; nothing is sent. Needs no database: the frequency in 10166 is that of a
key with which all vantages sign.
Exit code 1: the relay is not up, and nothing would be said of it.")]
    Preview {
        /// The relay
        url: Option<String>,
        /// Permit loopback, private ranges and local names
        #[arg(long)]
        allow_local: bool,
    },
}
