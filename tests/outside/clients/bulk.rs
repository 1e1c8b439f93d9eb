//! A gigabyte in and out, with the program's memory flat.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use house::machine;
use house::shared::cloud;
use house::wire::{message, text};

const GIGABYTE: u64 = 1 << 30;
/// What the program may grow by while a gigabyte passes.
const GROWTH_BYTES_MAX: u64 = 24 << 20;

pub fn copy_of_a_gigabyte_in_and_out_keeps_memory_flat() {
    let one = cloud().cluster("bulk-cluster", &[]);
    let mut wire = one.sign_in();
    // Unlogged and then emptied: the disk of the machine is not what is tested here.
    wire.query("create unlogged table bulk (line text)").unwrap();
    let before = machine::resident_bytes(cloud().pid());
    let mut highest = before;
    let line = format!("{}\n", "0123456789abcdef".repeat(511));
    let frame = message(b'd', line.repeat(8).as_bytes());
    let frames = GIGABYTE / (line.len() as u64 * 8);
    let begun = Instant::now();
    wire.send(b'Q', &text("copy bulk from stdin")).unwrap();
    assert_eq!(wire.expect_message().unwrap().tag, b'G');
    for number in 0..frames {
        wire.write_all(&frame).unwrap();
        if number % 512 == 0 {
            highest = highest.max(machine::resident_bytes(cloud().pid()));
        }
    }
    wire.send(b'c', &[]).unwrap();
    wire.socket().set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    wire.expect_ready().unwrap();
    let inward = begun.elapsed();
    let begun = Instant::now();
    wire.send(b'Q', &text("copy bulk to stdout")).unwrap();
    assert_eq!(wire.expect_message().unwrap().tag, b'H');
    // Bytes are counted without looking at each frame; the end is found by the table's exact size on the wire.
    let expected = frames * 8 * (line.len() as u64 + 5);
    let mut buffer = vec![0; 1 << 20];
    let mut received = 0;
    while received < expected {
        let want = usize::try_from((expected - received).min(1 << 20)).unwrap();
        let count = wire.read(&mut buffer[..want]).unwrap();
        assert!(count > 0, "the copy ended after {received} of {expected} bytes");
        received += count as u64;
        highest = highest.max(machine::resident_bytes(cloud().pid()));
    }
    wire.expect_ready().unwrap();
    let outward = begun.elapsed();
    let rate = |taken: Duration| 1024.0 / taken.as_secs_f64();
    println!(
        "  a gigabyte in at {:.0} MiB/s, out at {:.0} MiB/s, memory {} MiB and at most {} MiB",
        rate(inward),
        rate(outward),
        before >> 20,
        highest >> 20
    );
    assert!(highest - before < GROWTH_BYTES_MAX, "memory grew by {} MiB", (highest - before) >> 20);
    wire.query("drop table bulk").unwrap();
    drop(wire);
    cloud().chitin(["cluster", "delete", "bulk-cluster", "--yes"]).ok();
}
