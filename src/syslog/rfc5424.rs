//! FortiOS's `rfc5424` format: an RFC 5424 header with the device's name as host, then the fields of the default format
//! without date, time, devname and devid.

use super::Format;
use super::keyvalue;
use super::keyvalue::Separator;

pub(super) const FORMAT: Format = Format {
    name: "rfc5424",
    parse: |header| {
        header
            .is_rfc5424
            .then(|| keyvalue::fields(header.body, Separator::Blank))
    },
};
