//! What an engine that was taken over puts where we read, write and remove, and what of it is believed: nothing.

use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

fn ours() -> Owner {
    Owner { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
}

/// A folder of an engine's, and one of the machine's with a file that nobody may touch.
struct Scene {
    base: crate::folder::Folder,
    machine: crate::folder::Folder,
}

impl Scene {
    fn new() -> Self {
        let scene = Self { base: crate::folder::Folder::new(), machine: crate::folder::Folder::new() };
        std::fs::create_dir(scene.base.path().join("pg")).unwrap();
        std::fs::create_dir(scene.machine.path().join("inner")).unwrap();
        for name in ["victim", "inner/victim"] {
            std::fs::write(scene.machine.path().join(name), "untouched").unwrap();
        }
        scene
    }

    fn pg(&self) -> Inside {
        Inside::open(self.base.path(), "pg").unwrap()
    }

    fn victim(&self) -> PathBuf {
        self.machine.path().join("victim")
    }

    #[track_caller]
    fn assert_untouched(&self) {
        for name in ["victim", "inner/victim"] {
            assert_eq!(std::fs::read_to_string(self.machine.path().join(name)).unwrap(), "untouched");
        }
    }
}

#[test]
fn links_that_an_engine_left_are_not_followed() {
    let scene = Scene::new();
    for name in ["a.conf", "a.conf.new", "b.log"] {
        symlink(scene.victim(), scene.base.path().join("pg").join(name)).unwrap();
    }
    let inside = scene.pg();
    assert_eq!(inside.read("a.conf"), None);
    inside.write("a.conf", "ours", ours()).unwrap();
    inside.create("b.log", ours()).unwrap().write_all(b"ours").unwrap();
    assert_eq!(inside.read("a.conf").as_deref(), Some("ours"));
    scene.assert_untouched();

    symlink(scene.machine.path(), scene.base.path().join("log")).unwrap();
    let refused = Inside::open(scene.base.path(), "log").unwrap_err().to_string();
    assert!(refused.contains("/log: ") && refused.contains("link"), "{refused}");
    // Neither by a path of several names, a way up, or a way from the root.
    let base = Inside::at(scene.base.path()).unwrap();
    for name in ["log/inner", "..", "pg/../..", "/etc"] {
        assert!(base.below(name).is_err(), "{name}");
    }
    assert!(base.below("/proc/self/root").is_err());
}

#[test]
fn folders_pipes_and_sockets_are_not_read_and_do_not_stop_a_write() {
    let scene = Scene::new();
    let pg = scene.base.path().join("pg");
    rustix::fs::mknodat(rustix::fs::CWD, pg.join("pipe"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(pg.join("socket")).unwrap();
    std::fs::create_dir_all(pg.join("folder/in/it")).unwrap();
    std::fs::create_dir_all(pg.join("folder.new/in/it")).unwrap();
    let inside = scene.pg();
    for name in ["pipe", "socket", "folder"] {
        assert_eq!(inside.read_bytes(name), None, "{name}");
        inside.write(name, "ours", ours()).unwrap();
        assert_eq!(inside.read(name).as_deref(), Some("ours"), "{name}");
    }
}

#[test]
fn a_tree_is_removed_and_what_its_links_lead_to_stays() {
    let scene = Scene::new();
    let pg = scene.base.path().join("pg");
    std::fs::create_dir_all(pg.join("a/b/c")).unwrap();
    std::fs::create_dir_all(pg.join("a/empty")).unwrap();
    for place in ["link", "a/link", "a/b/c/link"] {
        symlink(scene.machine.path(), pg.join(place)).unwrap();
    }
    for number in 0..3_000 {
        std::fs::write(pg.join("a/b").join(number.to_string()), "").unwrap();
        if number % 100 == 0 {
            std::fs::create_dir_all(pg.join(format!("a/wide/{number}/inner"))).unwrap();
        }
    }
    std::fs::hard_link(scene.victim(), pg.join("a/second-name")).ok();
    let inside = scene.pg();
    inside.remove_tree("a").unwrap();
    inside.remove_tree("link").unwrap();
    inside.remove_tree("never there").unwrap();
    assert_eq!(inside.names().unwrap().len(), 0);
    scene.assert_untouched();
}

/// Makes folders in folders, as deep as no path can say.
fn dig(folder: &Inside, levels: usize) {
    let mut here = folder.folder.try_clone().unwrap();
    for _ in 0..levels {
        mkdirat(&here, "d", Mode::RWXU).unwrap();
        here = rustix::fs::openat(&here, "d", folder_flags(), Mode::empty()).unwrap();
    }
}

#[test]
fn a_tree_of_five_thousand_levels_is_removed_with_few_descriptors_and_a_small_stack() {
    let scene = Scene::new();
    let inside = scene.pg();
    dig(&inside, 5_000);
    let before = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let removing = std::thread::Builder::new().stack_size(64 * 1024).spawn(move || {
        inside.remove_tree("d").unwrap();
        inside
    });
    assert!(removing.unwrap().join().unwrap().names().unwrap().is_empty());
    assert!(std::fs::read_dir("/proc/self/fd").unwrap().count() < before + 50, "descriptors are left");
}

#[test]
fn folders_that_are_closed_by_their_mode_are_removed_by_their_owner() {
    use std::os::unix::fs::PermissionsExt;
    let scene = Scene::new();
    let deep = scene.base.path().join("pg/a/b/c");
    std::fs::create_dir_all(&deep).unwrap();
    for folder in [deep.as_path(), deep.parent().unwrap(), deep.parent().unwrap().parent().unwrap()] {
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o0)).unwrap();
    }
    scene.pg().remove_tree("a").unwrap();
    assert!(!scene.base.path().join("pg/a").exists());
}

#[test]
fn folders_that_become_links_while_they_are_removed_lead_nowhere() {
    let scene = Scene::new();
    let pg = scene.base.path().join("pg");
    let ended = AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            let (folder, aside) = (pg.join("tree/swapped"), pg.join("aside"));
            while !ended.load(Ordering::Relaxed) {
                // A folder of the name of one outside, then a link in its place, again and again.
                let _ = std::fs::create_dir_all(folder.join("inner"));
                let _ = std::fs::write(folder.join("victim"), "mine");
                let _ = std::fs::rename(&folder, &aside);
                let _ = symlink(scene.machine.path(), &folder);
                let _ = std::fs::remove_file(&folder);
                let _ = std::fs::rename(&aside, &folder);
            }
        });
        let inside = scene.pg();
        for _ in 0..500 {
            // Whoever is being outrun may say so.
            let _ = inside.remove_tree("tree");
        }
        ended.store(true, Ordering::Relaxed);
    });
    scene.assert_untouched();
}

#[test]
fn a_folder_that_is_moved_out_while_we_are_in_it_is_not_left_by_another_door() {
    let scene = Scene::new();
    let pg = scene.base.path().join("pg");
    std::fs::create_dir_all(pg.join("tree/down/under")).unwrap();
    std::fs::create_dir_all(pg.join("elsewhere")).unwrap();
    std::fs::write(pg.join("elsewhere/kept"), "").unwrap();
    let tree = Inside::open(&pg, "tree").unwrap();
    let ended = AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                let _ = std::fs::create_dir_all(pg.join("tree/down/under"));
                let _ = std::fs::rename(pg.join("tree/down"), pg.join("elsewhere/down"));
                let _ = std::fs::rename(pg.join("elsewhere/down"), pg.join("tree/down"));
            }
        });
        for _ in 0..2_000 {
            let _ = tree.remove_tree("down");
        }
        ended.store(true, Ordering::Relaxed);
    });
    assert!(pg.join("elsewhere/kept").exists(), "what lies beside it was removed");
}

#[test]
fn a_mount_in_the_way_is_not_entered() {
    use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
    if !is_root() {
        return crate::skipped::skipped("only root may mount");
    }
    let scene = Scene::new();
    let place = scene.base.path().join("pg/tree/mounted");
    std::fs::create_dir_all(&place).unwrap();
    mount("tmpfs", &place, "tmpfs", MountFlags::empty(), None).unwrap();
    std::fs::write(place.join("kept"), "").unwrap();
    let inside = scene.pg();
    let removed = inside.remove_tree("tree");
    let opened = inside.below("tree").unwrap().below("mounted");
    let is_kept = place.join("kept").exists();
    unmount(&place, UnmountFlags::DETACH).unwrap();
    assert!(is_kept && removed.is_err());
    let refused = opened.unwrap_err().to_string();
    assert!(refused.contains("mounted"), "{refused}");
    inside.remove_tree("tree").unwrap();
}

#[test]
fn a_kernel_that_cannot_do_it_is_named() {
    let refused = failed("open", Path::new("/x"))(Errno::NOSYS).to_string();
    assert!(refused.contains("Linux 5.6"), "{refused}");
}
