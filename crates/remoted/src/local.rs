//! The sockets of local programs: bound before privileges are dropped, served by
//! [`requests`](crate::requests) and [`orders`](crate::orders).

use std::{
    fs, io,
    os::unix::{
        fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown},
        net::UnixListener,
    },
    path::Path,
};

use anyhow::Context;
use muster_proto::paths;
use muster_service::Startup;

use crate::orders::OrderSockets;

/// Directories that daemons of several users share: group and sticky bit let each make its own files and none touch
/// another's.
const SHARED_DIRECTORY_MODE: u32 = 0o1770;

/// All of them.
pub struct LocalSockets {
    /// `queue/muster/remoted.ctl`
    pub control: UnixListener,
    /// `queue/sockets/remote`
    pub requests: UnixListener,
    /// `queue/alerts/ar` and `queue/alerts/cfgarq`
    pub orders: OrderSockets,
}

impl LocalSockets {
    /// Binds them, or takes those that the service manager has bound.
    pub fn bind(startup: &mut Startup) -> anyhow::Result<Self> {
        for path in ["queue/sockets", "queue/alerts"] {
            if !Path::new(path).is_dir() {
                make_shared(&startup.home, Path::new(path)).with_context(|| format!("making {path}"))?;
            }
        }
        Ok(Self {
            control: startup.control_socket()?,
            requests: startup.stream_socket("remote", paths::REMOTE_SOCKET)?,
            orders: OrderSockets {
                active_response: startup.datagram_socket("ar", paths::ACTIVE_RESPONSE_SOCKET)?,
                sca: startup.datagram_socket("cfgarq", paths::SCA_SOCKET)?,
            },
        })
    }
}

fn make_shared(home: &Path, path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o750).create(path)?;
    if nix::unistd::geteuid().is_root() {
        let home = fs::metadata(home)?;
        chown(path, Some(home.uid()), Some(home.gid()))?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(SHARED_DIRECTORY_MODE))
}
