//! What is asked of name servers, when one of them sends us on: the last place that a question passes.
//!
//! An alias may lead from a name of the public DNS to one of an overlay, and the resolver follows aliases by itself.
//! Invariant: no name of an overlay reaches a name server (RFC 7686), whoever makes one of it.

use std::future::{Ready, ready};
use std::net::IpAddr;

use futures_util::future::{BoxFuture, Either};
use futures_util::stream::{Once, once};
use hickory_resolver::config::ConnectionConfig;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::xfer::DnsHandle;
use hickory_resolver::net::{NetError, NoRecords};
use hickory_resolver::proto::op::{DnsRequest, DnsResponse, ResponseCode};
use hickory_resolver::proto::rr::Name;
use hickory_resolver::{ConnectionProvider, PoolContext, Resolver};

/// The last labels of what is no name of the public DNS.
const OVERLAYS: [&[u8]; 3] = [b"onion", b"i2p", b"loki"];

/// What asks name servers.
pub(super) type Asking = Resolver<Guarded>;

/// Connections to name servers, through which no name of an overlay goes.
#[derive(Clone, Default)]
pub(super) struct Guarded(TokioRuntimeProvider);

/// One of them.
#[derive(Clone)]
pub(super) struct Guard<C>(C);

impl ConnectionProvider for Guarded {
    type Conn = Guard<<TokioRuntimeProvider as ConnectionProvider>::Conn>;
    type FutureConn = BoxFuture<'static, Result<Self::Conn, NetError>>;
    type RuntimeProvider = TokioRuntimeProvider;

    fn new_connection(
        &self,
        ip: IpAddr,
        config: &ConnectionConfig,
        cx: &PoolContext,
    ) -> Result<Self::FutureConn, NetError> {
        let connecting = self.0.new_connection(ip, config, cx)?;
        Ok(Box::pin(async move { connecting.await.map(Guard) }))
    }

    fn runtime_provider(&self) -> &Self::RuntimeProvider {
        &self.0
    }
}

impl<C: DnsHandle> DnsHandle for Guard<C> {
    type Response = Either<C::Response, Once<Ready<Result<DnsResponse, NetError>>>>;
    type Runtime = C::Runtime;

    fn is_verifying_dnssec(&self) -> bool {
        self.0.is_verifying_dnssec()
    }

    fn is_using_edns(&self) -> bool {
        self.0.is_using_edns()
    }

    fn send(&self, request: DnsRequest) -> Self::Response {
        match request.queries.iter().find(|query| is_of_an_overlay(query.name())) {
            Some(query) => {
                let there_is_none = NoRecords::new(query.clone(), ResponseCode::NXDomain);
                Either::Right(once(ready(Err(there_is_none.into()))))
            }
            None => Either::Left(self.0.send(request)),
        }
    }
}

fn is_of_an_overlay(name: &Name) -> bool {
    name.iter()
        .next_back()
        .is_some_and(|last| OVERLAYS.iter().any(|overlay| last.eq_ignore_ascii_case(overlay)))
}
