//! A mail domain in the one form in which domains are compared and put on the wire: ASCII, in lower case.

use std::borrow::Cow;

use idna::AsciiDenyList;

/// `Bücher.example.` → `xn--bcher-kva.example`: the form in which DNS knows it, so that both spellings are one domain.
/// What can't be a domain comes back in lower case only, and is equal to no domain that is one.
pub fn normal(domain: &str) -> String {
    let domain = domain.trim_end_matches('.');
    // The list refuses letters that mean `/`, `@` or the like once they are mapped to ASCII.
    idna::domain_to_ascii_cow(domain.as_bytes(), AsciiDenyList::URL)
        .map_or_else(|_| domain.to_lowercase(), Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_of_a_domain_are_one() {
        for (written, known) in [
            ("EXAMPLE.com.", "example.com"),
            ("Bücher.example", "xn--bcher-kva.example"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("ｅｘａｍｐｌｅ.com", "example.com"),
            ("my_domain.example", "my_domain.example"),
            ("CONTOSO", "contoso"),
            ("", ""),
        ] {
            assert_eq!(normal(written), known, "{written}");
        }
    }

    #[test]
    fn what_cannot_be_a_domain_becomes_none() {
        for odd in ["a\u{2100}b.example", "two words", "evil＠example.com"] {
            assert_eq!(normal(odd), odd.to_lowercase(), "{odd}");
        }
    }
}
