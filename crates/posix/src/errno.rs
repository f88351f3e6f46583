//! Error numbers (errno(3)), and which of them an error of the engine is.

use std::fmt;

use omnimap_core::Error;

/// An [`Errno`] or a value.
pub type Result<T, E = Errno> = std::result::Result<T, E>;

/// The number of an error, as the C library has it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Errno(pub i32);

macro_rules! numbers {
    ($($name:ident)*) => {
        impl Errno {
            $(#[doc = concat!("`", stringify!($name), "`.")] pub const $name: Errno = Errno(libc::$name);)*

            /// Its name, `EINVAL` for example, if it is one that these calls give.
            pub fn name(self) -> Option<&'static str> {
                match self.0 {
                    $(libc::$name => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

numbers! {
    EACCES EAGAIN EBADF EBUSY ECHILD EDQUOT EEXIST EFAULT EINVAL EIO EMFILE ENAMETOOLONG ENFILE ENODEV ENOENT ENOMEM ENOSPC
    ENOSYS ENXIO EOPNOTSUPP EOVERFLOW EPERM EROFS ESTALE ETIMEDOUT ETXTBSY
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

impl std::error::Error for Errno {}

impl From<Errno> for std::io::Error {
    fn from(errno: Errno) -> std::io::Error {
        std::io::Error::from_raw_os_error(errno.0)
    }
}

impl From<i32> for Errno {
    fn from(number: i32) -> Errno {
        Errno(number)
    }
}

impl From<Error> for Errno {
    fn from(error: Error) -> Errno {
        Errno(error.errno())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_names_of_the_c_library() {
        assert_eq!(format!("{:?} {:?}", Errno::ENOMEM, Errno(9999)), "ENOMEM errno 9999");
        assert_eq!(Errno::EINVAL.to_string(), std::io::Error::from_raw_os_error(libc::EINVAL).to_string());
    }
}
