//! What the kernel dropped because a socket's receive queue was full: otherwise nobody would know that datagrams were lost.

use std::fs;
use std::io;
use std::os::fd::AsFd;

use prometheus_client::metrics::counter::Counter;
use tracing::warn;

/// The tables that list this network namespace's UDP sockets.
const TABLES: [&str; 2] = ["/proc/self/net/udp", "/proc/self/net/udp6"];

/// The columns of those tables that count here.
const INODE_COLUMN: usize = 9;
const DROPS_COLUMN: usize = 12;

/// Watches one socket's drop counter.
pub(super) struct Drops {
    inode: u64,
    /// The kernel's counter when last read; it begins at zero with the socket and wraps at 2³².
    seen: u32,
    counter: Counter,
    readable: bool,
}

impl Drops {
    pub(super) fn of(socket: impl AsFd, counter: Counter) -> io::Result<Self> {
        Ok(Self {
            inode: rustix::fs::fstat(socket)?.st_ino,
            seen: 0,
            counter,
            readable: true,
        })
    }

    /// Adds to the metric what was dropped since the last call, and says how much that is.
    ///
    /// Reads procfs, which is memory: it blocks no longer than the system call takes.
    pub(super) fn poll(&mut self) -> u32 {
        if !self.readable {
            return 0;
        }
        let now = match read(self.inode) {
            Ok(Some(now)) => now,
            Ok(None) => return 0,
            Err(error) => {
                self.readable = false;
                warn!(%error, "The kernel's count of dropped datagrams can't be read from /proc; ftm_relay_udp_dropped_total stays as it is");
                return 0;
            }
        };
        let dropped = now.wrapping_sub(self.seen);
        self.seen = now;
        self.counter.inc_by(u64::from(dropped));
        dropped
    }
}

fn read(inode: u64) -> io::Result<Option<u32>> {
    for table in TABLES {
        let table = match fs::read_to_string(table) {
            Ok(table) => table,
            // There is no udp6 on a host without IPv6.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        if let Some(drops) = find(&table, inode) {
            return Ok(Some(drops));
        }
    }
    Ok(None)
}

fn find(table: &str, inode: u64) -> Option<u32> {
    table.lines().skip(1).find_map(|line| {
        let mut columns = line.split_ascii_whitespace().skip(INODE_COLUMN);
        if columns.next()?.parse::<u64>().ok()? != inode {
            return None;
        }
        let drops: u64 = columns.nth(DROPS_COLUMN - INODE_COLUMN - 1)?.parse().ok()?;
        Some(drops as u32)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drops_stand_in_the_sockets_own_line() {
        let table = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n \
             110: 0100007F:0202 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4711 2 0000000000000000 3\n \
             111: 00000000:0202 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4712 2 0000000000000000 99\n";
        assert_eq!(find(table, 4712), Some(99));
        assert_eq!(find(table, 4711), Some(3));
        assert_eq!(find(table, 3), None);
    }
}
