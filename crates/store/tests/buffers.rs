//! What buffers leave behind. A process of its own: it looks at how much memory that has.

use std::sync::Barrier;

use omnimap_store::AlignedBytes;

/// Anonymous memory of this process, in bytes.
fn anonymous() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("the process's status");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("RssAnon");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

#[test]
fn buffers_of_many_threads_leave_no_memory_behind() {
    const THREADS: usize = 16;
    let before = anonymous();
    let (made, measured) = (Barrier::new(THREADS + 1), Barrier::new(THREADS + 1));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for _ in 0..4 {
                    let mut buffers = [0; 2].map(|_| AlignedBytes::new(1 << 20));
                    buffers.iter_mut().for_each(|buffer| buffer.fill(1));
                }
                made.wait();
                measured.wait();
            });
        }
        made.wait();
        let left = anonymous().saturating_sub(before);
        measured.wait();
        assert!(left < 4 << 20, "{left} bytes");
    });
}
