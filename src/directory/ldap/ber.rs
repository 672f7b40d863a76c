//! The little of BER (X.690) that LDAP needs (RFC 4511, 5.1): definite lengths and tags of one byte.

/// A Boolean.
pub(super) const BOOLEAN: u8 = 0x01;
/// An integer.
pub(super) const INTEGER: u8 = 0x02;
/// Bytes, mostly text.
pub(super) const OCTETS: u8 = 0x04;
/// One of several named numbers.
pub(super) const ENUMERATED: u8 = 0x0a;
/// Elements in order.
pub(super) const SEQUENCE: u8 = 0x30;
/// Elements in any order.
pub(super) const SET: u8 = 0x31;

/// One element with this content.
pub(super) fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len() + 6);
    out.push(tag);
    match u8::try_from(content.len()) {
        Ok(short) if short < 0x80 => out.push(short),
        _ => {
            let length = content.len().to_be_bytes();
            let zeros = length.iter().take_while(|b| **b == 0).count();
            let count = length.len() - zeros;
            out.push(0x80 | u8::try_from(count).expect("a length has at most eight bytes"));
            out.extend_from_slice(&length[zeros..]);
        }
    }
    out.extend_from_slice(content);
    out
}

/// One element that holds these.
pub(super) fn nest<'e>(tag: u8, elements: impl IntoIterator<Item = &'e Vec<u8>>) -> Vec<u8> {
    let content: Vec<u8> = elements.into_iter().flatten().copied().collect();
    element(tag, &content)
}

/// A number that is not negative, as an integer or an enumerated value.
pub(super) fn number(tag: u8, value: u32) -> Vec<u8> {
    // A first bit that is set would make it negative.
    let bytes = u64::from(value).to_be_bytes();
    let start = (0..bytes.len() - 1)
        .find(|at| bytes[*at] != 0 || bytes[at + 1] >= 0x80)
        .unwrap_or(bytes.len() - 1);
    element(tag, &bytes[start..])
}

/// How long an element is with its head, as far as the first bytes of it tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    /// More bytes are needed to tell.
    Open,
    /// So many bytes of head, then so many of content.
    Known(usize, usize),
    /// This is no such element.
    Wrong,
}

/// The size of the element that begins here.
pub(super) fn size(input: &[u8]) -> Size {
    let (Some(tag), Some(first)) = (input.first(), input.get(1)) else {
        return Size::Open;
    };
    if tag & 0x1f == 0x1f {
        return Size::Wrong; // a tag of several bytes: LDAP has none
    }
    let first = usize::from(*first);
    if first < 0x80 {
        return Size::Known(2, first);
    }
    let count = first & 0x7f;
    if !(1..=4).contains(&count) {
        return Size::Wrong; // without end, or beyond any memory
    }
    match input.get(2..2 + count) {
        None => Size::Open,
        Some(bytes) => {
            let length = bytes.iter().fold(0, |n, b| (n << 8) | usize::from(*b));
            Size::Known(2 + count, length)
        }
    }
}

/// Takes elements off the front of bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'i>(pub(super) &'i [u8]);

impl<'i> Reader<'i> {
    /// The next one, whatever it is.
    pub(super) fn next(&mut self) -> Option<(u8, &'i [u8])> {
        let Size::Known(head, length) = size(self.0) else {
            return None;
        };
        let end = head.checked_add(length)?;
        let content = self.0.get(head..end)?;
        let tag = self.0[0];
        self.0 = &self.0[end..];
        Some((tag, content))
    }

    /// The content of the next one, if it is of this kind.
    pub(super) fn take(&mut self, tag: u8) -> Option<&'i [u8]> {
        let mut ahead = *self;
        let (found, content) = ahead.next()?;
        (found == tag).then(|| {
            *self = ahead;
            content
        })
    }

    /// The next one as a number that is not negative.
    pub(super) fn number(&mut self, tag: u8) -> Option<u32> {
        let content = self.take(tag)?;
        if content.is_empty() || content.len() > 5 || content[0] >= 0x80 {
            return None;
        }
        let value = content.iter().fold(0u64, |n, b| (n << 8) | u64::from(*b));
        u32::try_from(value).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_as_short_as_it_can_be_and_never_negative() {
        assert_eq!(number(INTEGER, 0), [2, 1, 0]);
        assert_eq!(number(INTEGER, 127), [2, 1, 127]);
        assert_eq!(number(INTEGER, 128), [2, 2, 0, 128]);
        assert_eq!(number(INTEGER, 0x7fff), [2, 2, 0x7f, 0xff]);
        assert_eq!(number(INTEGER, u32::MAX), [2, 5, 0, 255, 255, 255, 255]);
        for value in [0, 1, 127, 128, 255, 256, 70_000, u32::MAX] {
            let bytes = number(ENUMERATED, value);
            assert_eq!(Reader(&bytes).number(ENUMERATED), Some(value));
        }
    }

    #[test]
    fn an_element_comes_back_whatever_its_length() {
        for length in [0, 1, 127, 128, 255, 256, 65_535, 65_536] {
            let content = vec![7; length];
            let bytes = element(OCTETS, &content);
            assert_eq!(Reader(&bytes).take(OCTETS), Some(content.as_slice()));
            for cut in 0..bytes.len().min(8) {
                assert!(Reader(&bytes[..cut.min(bytes.len() - 1)]).next().is_none());
            }
        }
    }

    #[test]
    fn a_length_without_end_or_beyond_memory_is_wrong() {
        assert_eq!(size(&[0x30, 0x80]), Size::Wrong);
        assert_eq!(size(&[0x30, 0x88, 1, 1, 1, 1, 1, 1, 1, 1]), Size::Wrong);
        assert_eq!(size(&[0x3f, 0x01]), Size::Wrong);
        assert_eq!(size(&[0x30, 0x84, 1]), Size::Open);
        assert_eq!(size(&[0x30, 0x82, 1, 0]), Size::Known(4, 256));
    }
}
