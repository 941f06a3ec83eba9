//! What can be asked without a database.

use clap::Args;

#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES:
  bigbrotr check wss://relay.example
  bigbrotr check --allow-local ws://127.0.0.1:7777
  bigbrotr check --json wss://relay.example

Exit code 0: the relay speaks Nostr; 1: it does not, or could not be reached.")]
pub(crate) struct Check {
    /// The relay
    pub(crate) url: String,
    /// Permit loopback, private ranges and local names
    #[arg(long)]
    pub(crate) allow_local: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES:
  bigbrotr url WSS://Relay.Example:443/ ws://abc.example//x/
  bigbrotr url --json - < list.txt     one object per line: input, url, network, reason

Exit code 1 when any text was refused.")]
pub(crate) struct Url {
    /// Texts to read; - reads them from standard input, one per line
    #[arg(required = true, value_name = "TEXT")]
    pub(crate) texts: Vec<String>,
    /// Accept loopback, private addresses and local names
    #[arg(long)]
    pub(crate) allow_local: bool,
}
