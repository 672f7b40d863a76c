//! Who may get a code at all (`[recipients]`), and how a logged user name becomes the name to look up.
