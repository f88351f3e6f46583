//! Files that another machine, or another process, has to be asked for.

use std::fs::File;

use crate::Answers;

/// `f_type` of statfs(2), from linux/magic.h and the file systems' own headers: FUSE, NFS, SMB (1, and cifs for it and for 2),
/// 9p, Ceph, AFS (OpenAFS, kAFS), Coda, NCP, GFS2, OCFS2, Lustre, OrangeFS, virtual machines' shared folders.
const FAR: [u32; 16] = [
    0x6573_5546,
    0x6969,
    0x517b,
    0xff53_4d42,
    0xfe53_4d42,
    0x0102_1997,
    0x00c3_6400,
    0x5346_414f,
    0x6b41_4653,
    0x7375_7245,
    0x564c,
    0x0116_1970,
    0x7461_636f,
    0x0bd0_0bd0,
    0x2003_0528,
    0x786f_4256,
];

/// What can be expected of a file's file system: where somebody else has to answer, that may be never.
pub(super) fn answers(file: &File) -> Answers {
    rustix::fs::fstatfs(file).map_or(Answers::Eventually, |found| answers_of(found.f_type as u32))
}

fn answers_of(file_system: u32) -> Answers {
    if FAR.contains(&file_system) { Answers::Eventually } else { Answers::Promptly }
}

#[cfg(test)]
mod tests {
    use super::{answers, answers_of};
    use crate::Answers;

    #[test]
    fn nobody_waits_himself_for_a_server() {
        let (nfs, ext4, tmpfs) = (0x6969, 0xef53, 0x0102_1994);
        assert_eq!(answers_of(nfs), Answers::Eventually);
        assert_eq!([ext4, tmpfs].map(answers_of), [Answers::Promptly; 2]);
        let memory = rustix::fs::memfd_create("near", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        assert_eq!(answers(&memory.into()), Answers::Promptly);
    }
}
