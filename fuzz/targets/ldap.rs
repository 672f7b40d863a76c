#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ftm_relay_fuzz::ldap(data));
