//! The memory that file pages may take: what the system reports as available, within the limits of
//! this process's control groups.

use std::fs;
use std::path::Path;

/// Returns the bytes that are available to this process, which include clean file pages that the system
/// could reclaim. `None` if the system does not report it.
pub(super) fn available_bytes() -> Option<u64> {
    available_in(Path::new("/"))
}

/// Like [`available_bytes`], with `proc` and `sys` below `root`.
fn available_in(root: &Path) -> Option<u64> {
    let whole = line(&root.join("proc/meminfo"), "MemAvailable:")? << 10;
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let left = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let mount = if controllers.is_empty() {
            "sys/fs/cgroup"
        } else if controllers.split(',').any(|name| name == "memory") {
            "sys/fs/cgroup/memory"
        } else {
            return None;
        };
        // In a container, the path may be that of the host: then only the root is visible.
        let mount = root.join(mount);
        let own = mount.join(path.trim_start_matches('/'));
        let folders = own
            .ancestors()
            .take_while(|folder| folder.starts_with(&mount));
        folders.filter_map(left_in).min()
    });
    Some(left.fold(whole, u64::min))
}

/// Returns the bytes that a control group may still take, if it has a limit.
fn left_in(folder: &Path) -> Option<u64> {
    let limit = number(&folder.join("memory.max"))
        .or_else(|| number(&folder.join("memory.limit_in_bytes")))?;
    let used = number(&folder.join("memory.current"))
        .or_else(|| number(&folder.join("memory.usage_in_bytes")))
        .unwrap_or(0);
    let stat = folder.join("memory.stat");
    let file = |name: &str| line(&stat, name).unwrap_or(0);
    let reclaimable = file("inactive_file") + file("active_file");
    Some(limit.saturating_sub(used.saturating_sub(reclaimable)))
}

/// Reads a file of one number; `None` if it says `max`.
fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Reads the number of the line that begins with a word.
fn line(path: &Path, word: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let mut words = text
        .lines()
        .map(str::split_whitespace)
        .find_map(|mut words| (words.next()? == word).then_some(words))?;
    words.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(root: &Path, files: &[(&str, &str)]) {
        for (name, text) in files {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    #[test]
    fn available_memory_is_the_least_of_the_system_s_and_of_all_limits() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        assert_eq!(available_in(root), None);
        let meminfo = "MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable:    4000 kB\n";
        put(root, &[("proc/meminfo", meminfo)]);
        assert_eq!(available_in(root), Some(4000 << 10));
        put(
            root,
            &[
                ("proc/self/cgroup", "0::/a/b\n"),
                ("sys/fs/cgroup/a/memory.max", "max\n"),
                ("sys/fs/cgroup/a/b/memory.max", "1000000\n"),
                ("sys/fs/cgroup/a/b/memory.current", "900000\n"),
                (
                    "sys/fs/cgroup/a/b/memory.stat",
                    "anon 1\ninactive_file 300000\nactive_file 200000\n",
                ),
            ],
        );
        assert_eq!(available_in(root), Some(600_000));
        put(root, &[("sys/fs/cgroup/a/memory.max", "5000\n")]);
        assert_eq!(available_in(root), Some(5000), "the limit of a parent");
        // Version 1, in a container that does not see its own path.
        put(
            root,
            &[
                (
                    "proc/self/cgroup",
                    "9:cpu:/x\n4:hugetlb,memory:/host/x\n0::/a/c\n",
                ),
                ("sys/fs/cgroup/a/memory.max", "max\n"),
                ("sys/fs/cgroup/memory/memory.limit_in_bytes", "70000\n"),
                ("sys/fs/cgroup/memory/memory.usage_in_bytes", "80000\n"),
            ],
        );
        assert_eq!(available_in(root), Some(0));
        if cfg!(target_os = "linux") {
            assert!(available_bytes().is_some_and(|bytes| bytes > 0));
        }
    }
}
