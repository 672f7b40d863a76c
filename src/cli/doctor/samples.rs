//! The samples of a metrics text.

/// One line of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    name: String,
    labels: Vec<(String, String)>,
    pub value: f64,
}

impl Sample {
    /// The value of a label, empty if it has none.
    pub fn label(&self, name: &str) -> &str {
        self.labels
            .iter()
            .find(|(label, _)| label == name)
            .map_or("", |(_, value)| value)
    }
}

/// All samples.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<Sample>);

impl Samples {
    /// Reads a text as `/metrics` has it; lines that it doesn't understand are left out.
    pub fn read(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        Self(lines.filter_map(sample).collect())
    }

    /// The samples of one metric, which is named without the prefix of all.
    pub fn of<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'s Sample> {
        self.0
            .iter()
            .filter(move |s| s.name.strip_prefix("ftm_relay_") == Some(name))
    }

    /// The sum of one metric.
    pub fn sum(&self, name: &str) -> f64 {
        self.of(name).map(|s| s.value).sum()
    }
}

fn sample(line: &str) -> Option<Sample> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = Vec::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        while !rest.starts_with('}') {
            let (label, quoted) = rest.split_once("=\"")?;
            let (value, after) = unquoted(quoted)?;
            labels.push((label.to_owned(), value));
            rest = after.strip_prefix(',').unwrap_or(after);
        }
        rest = &rest[1..];
    }
    Some(Sample {
        name: name.to_owned(),
        labels,
        value: rest.split_ascii_whitespace().next()?.parse().ok()?,
    })
}

/// A label's value, and what stands after its closing quote.
fn unquoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_may_hold_anything_a_device_calls_itself() {
        let samples = Samples::read(
            "# TYPE ftm_relay_x gauge\nftm_relay_x{device=\"a\\\"} 9,b=\\\\\",z=\"1\"} 2.5\nftm_relay_y 3\nnonsense{\n",
        );
        let x: Vec<_> = samples.of("x").collect();
        assert_eq!(
            (x[0].label("device"), x[0].label("z")),
            ("a\"} 9,b=\\", "1")
        );
        assert_eq!((x[0].value, x.len(), samples.sum("y")), (2.5, 1, 3.0));
    }
}
