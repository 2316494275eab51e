//! As much of authd as key polling needs: `add` and `get`, in memory.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    path::PathBuf,
    sync::{Arc, Mutex},
    thread,
};

use muster_proto::local::auth::{self, Add, AgentData, Answer, ErrorCode, Request};

use super::Home;

#[derive(Default)]
struct State {
    agents: BTreeMap<String, AgentData>,
    adds: Vec<Add>,
    refusal: Option<ErrorCode>,
}

/// Listens at `queue/sockets/auth` until it is dropped.
pub(crate) struct FakeAuthd {
    state: Arc<Mutex<State>>,
    path: PathBuf,
}

impl FakeAuthd {
    pub(crate) fn listen(home: &Home) -> Self {
        let path = home.path("queue/sockets/auth");
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path).expect("bound");
        // The daemon may be another user.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("opened to all");
        let state = Arc::<Mutex<State>>::default();
        let serving = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let _ = serve(stream, &serving);
            }
        });
        Self { state, path }
    }

    pub(crate) fn knows(&self, id: &str, name: &str, ip: &str, key: &str) {
        let agent = AgentData {
            id: id.to_owned(),
            name: name.to_owned(),
            ip: ip.to_owned(),
            key: key.to_owned(),
        };
        self.state.lock().expect("lock").agents.insert(id.to_owned(), agent);
    }

    pub(crate) fn refuse_all(&self, code: ErrorCode) {
        self.state.lock().expect("lock").refusal = Some(code);
    }

    /// `id name ip key` of every agent, as a key file has it.
    pub(crate) fn agents(&self) -> Vec<String> {
        let state = self.state.lock().expect("lock");
        let line = |agent: &AgentData| format!("{} {} {} {}", agent.id, agent.name, agent.ip, agent.key);
        state.agents.values().map(line).collect()
    }

    /// What it was asked to add.
    pub(crate) fn adds(&self) -> Vec<Add> {
        self.state.lock().expect("lock").adds.clone()
    }
}

impl Drop for FakeAuthd {
    fn drop(&mut self) {
        // Nobody finds it any more; the thread ends with the process.
        let _ = fs::remove_file(&self.path);
    }
}

fn serve(mut stream: UnixStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut header = [0; 4];
    stream.read_exact(&mut header)?;
    let mut payload = vec![0; auth::payload_len(header).expect("a length")];
    stream.read_exact(&mut payload)?;
    let mut state = state.lock().expect("lock");
    let answer = match Request::parse(&payload) {
        Ok(Request::Get { id }) => match state.agents.get(id.as_str()) {
            Some(agent) => Answer::Agent(agent.clone()),
            None => Answer::Error(ErrorCode::IdNotFound),
        },
        Ok(Request::Add(add)) => {
            state.adds.push((*add).clone());
            match state.refusal {
                Some(code) => Answer::Error(code),
                None => {
                    let agent = AgentData {
                        id: add.id.expect("an id").to_string(),
                        name: add.name,
                        ip: add.ip,
                        key: add.key.expect("a key").expose().to_owned(),
                    };
                    state.agents.insert(agent.id.clone(), agent.clone());
                    Answer::Agent(agent)
                }
            }
        }
        _ => Answer::Error(ErrorCode::Internal),
    };
    stream.write_all(&auth::frame(&answer.to_payload()))
}
