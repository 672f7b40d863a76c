//! What the end of an HTTP exchange means: one table, the whole of it.
//!
//! Providers that say more in a body than in the status have a table of their words in their own file; what is in
//! neither table falls back to this one.

use reqwest::StatusCode;

use crate::channel::Class;

/// Why no answer came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The name isn't known, nobody listens, nobody answered in time, the proxy can't get there.
    Connect,
    /// TLS failed for another reason than the certificate.
    Tls,
    /// The server isn't who the URL says.
    Certificate,
    /// The proxy wants another log-in.
    ProxyLogin,
    /// The request can't be put together.
    Malformed,
    /// The connection ended or fell silent after the request went out.
    Lost,
}

/// The meaning of a missing answer.
pub fn of_fault(fault: Fault) -> Class {
    match fault {
        Fault::Connect | Fault::Tls => Class::Away,
        Fault::Certificate | Fault::ProxyLogin => Class::Broken,
        Fault::Malformed => Class::Permanent,
        Fault::Lost => Class::Unknown,
    }
}

/// The meaning of a status, with or without a Retry-After; `None`: accepted.
pub fn of_status(status: StatusCode, retry_after: bool) -> Option<Class> {
    Some(match status.as_u16() {
        200..=299 => return None,
        // A redirect might lead a code to anybody; none is followed.
        300..=399 => Class::Broken,
        401 | 403 | 404 | 410 => Class::Broken,
        // Only a proxy says this.
        407 => Class::Broken,
        408 | 425 => Class::Transient,
        429 => Class::Away,
        400..=499 => Class::Permanent,
        // It names a time for everybody, not for this request.
        503 if retry_after => Class::Away,
        500..=599 => Class::Transient,
        // 1xx never ends an exchange, and nothing else is HTTP.
        _ => Class::Transient,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use Class::Away;
    use Class::Broken;
    use Class::Permanent;
    use Class::Transient;
    use Class::Unknown;

    #[test]
    fn every_status_has_its_class() {
        // Statuses, what they mean, and what they mean with a Retry-After.
        let table: [(&[u16], Option<Class>, Option<Class>); 8] = [
            (&[200, 201, 202, 204, 206, 299], None, None),
            (
                &[300, 301, 302, 303, 304, 307, 308, 399],
                Some(Broken),
                Some(Broken),
            ),
            (&[401, 403, 404, 407, 410], Some(Broken), Some(Broken)),
            (
                &[400, 402, 405, 406, 409, 411, 413, 415, 418, 422, 451, 499],
                Some(Permanent),
                Some(Permanent),
            ),
            (&[408, 425], Some(Transient), Some(Transient)),
            (&[429], Some(Away), Some(Away)),
            (&[503], Some(Transient), Some(Away)),
            (
                &[500, 501, 502, 504, 505, 507, 599, 100, 600, 999],
                Some(Transient),
                Some(Transient),
            ),
        ];
        for (statuses, alone, with_retry_after) in table {
            for status in statuses {
                let status = StatusCode::from_u16(*status).unwrap();
                assert_eq!(of_status(status, false), alone, "{status}");
                assert_eq!(of_status(status, true), with_retry_after, "{status}");
            }
        }
    }

    #[test]
    fn only_what_the_peer_may_have_taken_is_unknown() {
        for (fault, class) in [
            (Fault::Connect, Away),
            (Fault::Tls, Away),
            (Fault::Certificate, Broken),
            (Fault::ProxyLogin, Broken),
            (Fault::Malformed, Permanent),
            (Fault::Lost, Unknown),
        ] {
            assert_eq!(of_fault(fault), class, "{fault:?}");
        }
    }
}
