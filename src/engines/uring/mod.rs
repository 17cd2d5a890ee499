use super::*;
pub const ENGINE: Engine = Engine {
    name: "uring",
    summary: "x",
    threads: Threads::PerCore,
    capabilities: Capabilities { clients_max: None },
    available: || Err(Refusal { cause: "x".into(), remedy: "y".into() }),
    run: |_| Ok(()),
};
