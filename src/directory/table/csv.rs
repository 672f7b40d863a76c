//! CSV as people write and export it, line by line, so that a quote left open is said where it is and costs one line.

use std::io::BufRead;
use std::io::Read;

use csv_core::ReadRecordResult;

use crate::directory::shown;
use crate::recipients::Recipients;

use super::and;
use super::people::Draft;
use super::people::Fields;
use super::people::Oddity;
use super::people::People;

/// The longest line.
const MAX_LINE_BYTES: usize = 16 * 1024;
/// The most columns, unknown ones included.
const MAX_COLUMNS: usize = 256;
/// How many bad lines are named.
const MAX_PROBLEMS: usize = 20;
/// How many contradicting users are named.
const MAX_CONFLICTS: usize = 20;
/// The columns of a table; the first two must be there.
const COLUMNS: [&str; 5] = ["user", "email", "name", "phone", "language"];

/// A table as read, and what is odd about it.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) people: People,
    pub(super) warnings: Vec<String>,
}

/// Reads a whole table of about so many bytes. `Err`: what is wrong with it, line by line. `file` is how sentences call it.
pub(super) fn read(
    mut from: impl BufRead,
    bytes: usize,
    file: &str,
    recipients: &Recipients,
) -> Result<Content, Vec<String>> {
    let mut problems = Problems::default();
    let mut draft = Draft::new(recipients, bytes);
    let mut oddities = Oddities::default();
    let mut splitter = Splitter::new();
    let mut header: Option<Header> = None;
    let mut warnings = Vec::new();
    let mut buffer = Vec::new();
    for number in 1_u32.. {
        match read_line(&mut from, &mut buffer) {
            Ok(0) => break,
            Ok(_) => {}
            Err(e) => return Err(vec![format!("{file} can't be read: {e}")]),
        }
        let row = line(&buffer, number).and_then(|line| match line.trim().is_empty() {
            true => Ok(None),
            false => splitter.split(line).map(Some),
        });
        let row = match (row, &header) {
            (Ok(None), _) => continue,
            // Without its columns the rest can't be judged, and an endless line is no table.
            (Err(why), None) => return Err(vec![format!("{file}, line {number}: {why}")]),
            (Err(why), Some(_)) => {
                problems.add(format!("{file}, line {number}: {why}"));
                if buffer.len() > MAX_LINE_BYTES {
                    break;
                }
                continue;
            }
            (Ok(Some(row)), _) => row,
        };
        match &header {
            None => match Header::read(&row) {
                Ok((columns, unknown)) => {
                    if !unknown.is_empty() {
                        warnings.push(format!(
                            "{file}, line {number}: the columns {} are not used; known are {}",
                            unknown.join(", "),
                            COLUMNS.join(", ")
                        ));
                    }
                    header = Some(columns);
                }
                Err(why) => return Err(vec![format!("{file}, line {number}: {why}")]),
            },
            Some(header) => match header.fields(&row).and_then(|f| draft.add(number, &f)) {
                Ok(odd) => oddities.add(number, odd),
                Err(why) => problems.add(format!("{file}, line {number}: {why}")),
            },
        }
    }
    if header.is_none() {
        return Err(vec![format!(
            "{file} is empty; its first line names the columns: {}",
            COLUMNS.join(",")
        )]);
    }
    problems.into_result()?;
    let people = draft.finish();
    if people.len() == 0 {
        warnings.push(format!("{file} holds nobody"));
    }
    warnings.extend(oddities.sentences(file));
    let conflicts = people.conflicts();
    for (user, lines) in conflicts.iter().take(MAX_CONFLICTS) {
        warnings.push(format!(
            "{file}: two entries for {}, lines {}, differ, so nobody gets that user's code",
            shown(user),
            and(lines)
        ));
    }
    if conflicts.len() > MAX_CONFLICTS {
        warnings.push(format!(
            "{file}: {} more users have entries that differ",
            conflicts.len() - MAX_CONFLICTS
        ));
    }
    Ok(Content { people, warnings })
}

/// One more byte than a line may have, so that a longer one is seen as such.
fn read_line(from: &mut impl BufRead, buffer: &mut Vec<u8>) -> std::io::Result<usize> {
    buffer.clear();
    from.take(MAX_LINE_BYTES as u64 + 1)
        .read_until(b'\n', buffer)
}

fn line(bytes: &[u8], number: u32) -> Result<&str, String> {
    if bytes.len() > MAX_LINE_BYTES {
        return Err(format!("is longer than {MAX_LINE_BYTES} bytes"));
    }
    let bytes = match number {
        1 => bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes),
        _ => bytes,
    };
    let text = std::str::from_utf8(bytes).map_err(|_| {
        "is not UTF-8, perhaps Latin-1 or UTF-16 from a spreadsheet; save the file as CSV UTF-8"
            .to_owned()
    })?;
    Ok(text.trim_end_matches(['\r', '\n']))
}

/// Splits one line at its commas.
struct Splitter {
    core: csv_core::Reader,
    input: Vec<u8>,
    output: Vec<u8>,
    ends: Vec<usize>,
}

impl Splitter {
    fn new() -> Self {
        Self {
            core: csv_core::ReaderBuilder::new()
                .terminator(csv_core::Terminator::Any(b'\n'))
                .build(),
            input: Vec::new(),
            output: vec![0; MAX_LINE_BYTES + 1],
            ends: vec![0; MAX_COLUMNS],
        }
    }

    fn split(&mut self, line: &str) -> Result<Cells<'_>, String> {
        self.input.clear();
        self.input.extend_from_slice(line.as_bytes());
        self.input.push(b'\n');
        self.core.reset();
        let (result, _, written, columns) =
            self.core
                .read_record(&self.input, &mut self.output, &mut self.ends);
        match result {
            ReadRecordResult::Record => Ok(Cells {
                text: std::str::from_utf8(&self.output[..written])
                    .map_err(|_| "is not UTF-8".to_owned())?,
                ends: &self.ends[..columns],
            }),
            ReadRecordResult::OutputEndsFull => Err(format!("has more than {MAX_COLUMNS} columns")),
            _ => Err("a quote is opened and not closed; double a quote that is meant".to_owned()),
        }
    }
}

/// The cells of one line, without outer blanks.
struct Cells<'a> {
    text: &'a str,
    ends: &'a [usize],
}

impl<'a> Cells<'a> {
    fn len(&self) -> usize {
        self.ends.len()
    }

    fn get(&self, column: usize) -> Option<&'a str> {
        let from = match column {
            0 => 0,
            _ => *self.ends.get(column - 1)?,
        };
        Some(self.text[from..*self.ends.get(column)?].trim())
    }

    fn iter(&self) -> impl Iterator<Item = &'a str> {
        (0..self.len()).filter_map(|column| self.get(column))
    }
}

/// In which column what stands.
struct Header {
    at: [Option<usize>; COLUMNS.len()],
    width: usize,
}

impl Header {
    /// The columns, and the names of those that are not known.
    fn read(cells: &Cells<'_>) -> Result<(Self, Vec<String>), String> {
        let mut at = [None; COLUMNS.len()];
        let mut unknown = Vec::new();
        for (column, name) in cells.iter().enumerate() {
            match COLUMNS.iter().position(|c| c.eq_ignore_ascii_case(name)) {
                Some(known) if at[known].is_some() => {
                    return Err(format!("the column {name} stands twice"));
                }
                Some(known) => at[known] = Some(column),
                None if name.is_empty() => {}
                None => unknown.push(name.chars().filter(|c| !c.is_control()).take(32).collect()),
            }
        }
        let missing: Vec<&str> = (0..2)
            .filter(|&i| at[i].is_none())
            .map(|i| COLUMNS[i])
            .collect();
        if !missing.is_empty() {
            let separated = cells.len() == 1 && cells.iter().any(|c| c.contains([';', '\t']));
            return Err(format!(
                "no column is called {}; the first line names the columns{}: {}",
                missing.join(" or "),
                if separated {
                    ", with commas between them"
                } else {
                    ""
                },
                COLUMNS.join(",")
            ));
        }
        let width = cells.len();
        Ok((Self { at, width }, unknown))
    }

    fn fields<'a>(&self, cells: &Cells<'a>) -> Result<Fields<'a>, String> {
        let beyond = |column| cells.get(column).is_some_and(|c| !c.is_empty());
        if (self.width..cells.len()).any(beyond) {
            return Err(format!(
                "has {} columns, the first line {}; quote a value that holds a comma",
                cells.len(),
                self.width
            ));
        }
        let get = |known: usize| {
            self.at[known]
                .and_then(|column| cells.get(column))
                .unwrap_or_default()
        };
        Ok(Fields {
            user: get(0),
            email: get(1),
            name: get(2),
            phone: get(3),
            language: get(4),
        })
    }
}

/// Bad lines: all counted, the first ones named.
#[derive(Default)]
struct Problems {
    named: Vec<String>,
    more: usize,
}

impl Problems {
    fn add(&mut self, problem: String) {
        match self.named.len() < MAX_PROBLEMS {
            true => self.named.push(problem),
            false => self.more += 1,
        }
    }

    fn into_result(mut self) -> Result<(), Vec<String>> {
        if self.named.is_empty() {
            return Ok(());
        }
        if self.more > 0 {
            self.named.push(format!("and {} more lines", self.more));
        }
        Err(self.named)
    }
}

/// Odd lines by kind: how many, and the first one.
#[derive(Default)]
struct Oddities(std::collections::BTreeMap<Oddity, (usize, u32)>);

impl Oddities {
    fn add(&mut self, line: u32, odd: Vec<Oddity>) {
        for oddity in odd {
            self.0.entry(oddity).or_insert((0, line)).0 += 1;
        }
    }

    fn sentences(&self, file: &str) -> Vec<String> {
        self.0
            .iter()
            .map(|(oddity, &(count, line))| match count {
                1 => format!("{file}, line {line}: {}", oddity.text()),
                _ => format!(
                    "{file}, line {line} and {} more: {}",
                    count - 1,
                    oddity.text()
                ),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::directory::table::people::Found;
    use crate::recipients;
    use crate::settings::Check;

    use super::*;

    fn recipients() -> Recipients {
        let config: recipients::Config = toml::from_str("domains = [\"example.com\"]").unwrap();
        config.build(&mut Check::new(".", None, true)).unwrap()
    }

    fn quoted(text: &str) -> String {
        format!("\"{}\"", text.replace('"', "\"\""))
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(header: bool, bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut file = if header { b"user,email,name\n".to_vec() } else { Vec::new() };
            file.extend(bytes);
            drop(read(&file[..], 0, "t", &recipients()));
        }

        #[test]
        fn nearly_right_lines_make_no_panic(lines in "(user,email|[ab]|\"|,|;|@|\n|\r|a@example.com|é|\u{feff}){0,40}") {
            let file = format!("user,email\n{lines}");
            drop(read(file.as_bytes(), 0, "t", &recipients()));
        }

        #[test]
        fn what_is_quoted_comes_back_under_its_own_user(
            names in proptest::collection::vec("[^\\p{Cc}]{0,20}", 1..30),
        ) {
            let mut file = "email,name,user\r\n".to_owned();
            for (n, name) in names.iter().enumerate() {
                file += &format!("user{n}@example.com,{},User{n}\r\n", quoted(name));
            }
            let content = read(file.as_bytes(), 0, "t", &recipients()).unwrap();
            for (n, name) in names.iter().enumerate() {
                let user = format!("user{n}");
                let Found::One(fields) = content.people.find(&user) else {
                    panic!("{user} is not found")
                };
                prop_assert_eq!(fields.user, &user);
                prop_assert_eq!(fields.email, format!("{user}@example.com"));
                prop_assert_eq!(fields.name, name.trim());
            }
        }
    }
}
