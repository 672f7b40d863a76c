//! A FortiGate's REST API: which tokens a user holds, what their codes are, and what its event log says.
//!
//! Everything is read, nothing is changed. A device's answer counts only if it comes from that device (its certificate, the
//! serial number in its answer) and for the VDOM that was asked; anything else is an [`ApiError`], never a guess.

mod answer;
mod client;
mod error;
mod events;
mod fleet;
mod probe;

use std::future::Future;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::timeout;

use crate::activation::ActivationCode;
use crate::activation::is_serial;
use crate::secret::Secret;

use answer::TokenRow;
use answer::UserRow;
use client::Client;
use client::Resource;
use client::Shared;

pub use error::ApiError;
pub use events::Events;
pub use events::Record;
pub use fleet::CatchUp;
pub use fleet::Fleet;
pub use probe::Finding;

/// One FortiGate whose REST API may be asked.
///
/// At most two requests are under way at a time, and those who ask for the same user at the same time share one answer. Each
/// call is bounded in memory and in time: [`owners`](Self::owners), [`tokens_of`](Self::tokens_of) and [`token`](Self::token)
/// take 30 s at most.
pub struct FortiGate {
    /// The id of its `[[device]]`.
    id: String,
    /// All its ids, the members of its cluster.
    ids: Vec<String>,
    confirm: bool,
    catch_up: CatchUp,
    client: Client,
    held: Shared<(String, String), Vec<Token>>,
}

/// A mobile token and what the device knows of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The serial number, `FTKMOB…`.
    pub serial: String,
    /// The activation code, as far as the device shows it.
    pub code: Code,
    /// From when on the code is worthless (`activation-expire`).
    pub expires_at: Option<Timestamp>,
    /// Whether a phone has taken it (`reg-id` is filled): its code is spent, though it still stands in the configuration.
    pub is_activated: bool,
    /// Whether an administrator locked it (`status`).
    pub is_locked: bool,
    /// Who holds it; `None`: nobody that may be read.
    pub owner: Option<Owner>,
}

/// The object of the configuration that holds a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// What it is.
    pub kind: Holder,
    /// Its name.
    pub name: String,
    /// `fortitoken`: the serial number of its token.
    pub token: Option<String>,
    /// `email-to`.
    pub email: Option<String>,
    /// `sms-phone`.
    pub phone: Option<String>,
}

/// The kinds of object that hold tokens. Peers (`user peer`) have a second factor, but neither `fortitoken` nor `email-to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Holder {
    /// `user local`, in one VDOM.
    User,
    /// `system admin`, global.
    Administrator,
}

impl Holder {
    /// As FortiOS's configuration calls it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user local",
            Self::Administrator => "system admin",
        }
    }
}

/// What stands in the place of an activation code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Code {
    /// The code.
    Clear(ActivationCode),
    /// Something that hides it.
    Masked(Mask),
    /// Nothing: the token isn't provisioned.
    Absent,
}

/// How a code is hidden.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// `****`
    Asterisks,
    /// `ENC …`
    Encrypted,
    /// Something else that is no activation code.
    Other,
}

impl Code {
    /// The code, if the device shows it.
    pub fn clear(&self) -> Option<&ActivationCode> {
        match self {
            Self::Clear(code) => Some(code),
            Self::Masked(_) | Self::Absent => None,
        }
    }

    /// What a sentence says about it: "the device shows …".
    pub fn shown(&self) -> &'static str {
        match self {
            Self::Clear(_) => "a code",
            Self::Masked(Mask::Asterisks) => "asterisks in place of the code",
            Self::Masked(Mask::Encrypted) => "an encrypted value in place of the code",
            Self::Masked(Mask::Other) => {
                "something that is no activation code in place of the code"
            }
            Self::Absent => "no code",
        }
    }

    /// Reads `activation-code`.
    fn read(text: &str) -> Self {
        let text = text.trim();
        if text.is_empty() {
            return Self::Absent;
        }
        if let Some(code) = ActivationCode::parse(text).or_else(|| long_code(text)) {
            return Self::Clear(code);
        }
        Self::Masked(if text.chars().all(|c| c == '*') {
            Mask::Asterisks
        } else if text.starts_with("ENC ") {
            Mask::Encrypted
        } else {
            Mask::Other
        })
    }
}

/// The longer form of a code: 64 base32 characters that begin with a byte of 0x31. In a log it might be anything; here it
/// stands where a code stands.
fn long_code(text: &str) -> Option<ActivationCode> {
    let is_long = text.len() == 64
        && matches!(text.as_bytes(), [b'G', b'E'..=b'H', ..])
        && text.bytes().all(|b| matches!(b, b'A'..=b'Z' | b'2'..=b'7'));
    is_long.then(|| ActivationCode::captured(text)).flatten()
}

/// All the requests about one user or one token.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// The most pending tokens of one VDOM that are read.
const MAX_PENDING: usize = 5_000;
/// So many serial numbers stand in one filter.
const SERIALS_PER_FILTER: usize = 16;

const TOKEN_FORMAT: &str = "serial-number|status|activation-code|activation-expire|reg-id";
const OWNER_FORMAT: &str = "name|two-factor|fortitoken|email-to|sms-phone";

impl FortiGate {
    /// The id of its `[[device]]`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Host and port of its API.
    pub fn host(&self) -> &str {
        self.client.host()
    }

    /// Whether nothing may be sent before this device confirms it.
    pub fn confirms(&self) -> bool {
        self.confirm
    }

    /// Whether and where its log is read.
    pub fn catch_up(&self) -> &CatchUp {
        &self.catch_up
    }

    /// What must never be shown.
    pub fn secrets(&self) -> Vec<Secret> {
        self.client.secrets()
    }

    /// The objects of exactly this name: the user of the VDOM, the administrator, or both. Empty: there is none.
    ///
    /// Administrators that the API key may not read (`sysgrp`) count as absent if there is a user; if there is none, that is
    /// an error, for nobody can say whether the person exists.
    pub async fn owners(&self, vdom: &str, user: &str) -> Result<Vec<Owner>, ApiError> {
        self.in_time(self.ask_owners(vdom, user)).await
    }

    async fn ask_owners(&self, vdom: &str, user: &str) -> Result<Vec<Owner>, ApiError> {
        let local = self.owner(Holder::User, vdom, user).await?;
        let admin = match self.owner(Holder::Administrator, vdom, user).await {
            Err(ApiError::Forbidden { .. }) if local.is_some() => None,
            admin => admin?,
        };
        Ok(local.into_iter().chain(admin).collect())
    }

    /// Every token that objects of exactly this name hold. Empty: there are none.
    pub async fn tokens_of(&self, vdom: &str, user: &str) -> Result<Vec<Token>, ApiError> {
        let key = (vdom.to_owned(), user.to_owned());
        self.in_time(self.held.get(key, self.ask_tokens_of(vdom, user)))
            .await
    }

    async fn ask_tokens_of(&self, vdom: &str, user: &str) -> Result<Vec<Token>, ApiError> {
        let mut tokens = Vec::new();
        for owner in self.ask_owners(vdom, user).await? {
            let Some(serial) = &owner.token else { continue };
            if let Some(row) = self.token_row(vdom, serial).await? {
                tokens.push(row.token(Some(owner)));
            }
        }
        Ok(tokens)
    }

    /// One token with who holds it. `None`: the device doesn't know it.
    pub async fn token(&self, vdom: &str, serial: &str) -> Result<Option<Token>, ApiError> {
        self.in_time(self.ask_token(vdom, serial)).await
    }

    async fn ask_token(&self, vdom: &str, serial: &str) -> Result<Option<Token>, ApiError> {
        if !is_serial(serial) {
            return Ok(None);
        }
        let Some(row) = self.token_row(vdom, serial).await? else {
            return Ok(None);
        };
        let mut owners = self.owners_of(vdom, &[serial]).await?;
        match owners.len() {
            0 | 1 => Ok(Some(row.token(owners.pop()))),
            _ => Err(ApiError::nonsense(format!(
                "{}: two objects hold the token {serial}, and whose it is can't be known",
                self.host()
            ))),
        }
    }

    /// The tokens of a VDOM that are provisioned and that no phone has taken, expired ones too, with who holds them.
    pub async fn pending(&self, vdom: &str) -> Result<Vec<Token>, ApiError> {
        let rows: Vec<TokenRow> = self
            .client
            .list(
                Resource::Tokens,
                vdom,
                &[("format", TOKEN_FORMAT), ("filter", "activation-expire>0")],
                MAX_PENDING,
                |row: &TokenRow| row.is_pending(),
            )
            .await?;
        let mut owners = Vec::new();
        let serials: Vec<&str> = rows.iter().map(TokenRow::serial).collect();
        for some in serials.chunks(SERIALS_PER_FILTER) {
            owners.extend(self.owners_of(vdom, some).await?);
        }
        let tokens = rows.into_iter().map(|row| {
            let mut holders = owners
                .iter()
                .filter(|owner| owner.token.as_deref() == Some(row.serial()));
            // Of two holders nobody can say which one is meant.
            let owner = match (holders.next(), holders.next()) {
                (Some(owner), None) => Some(owner.clone()),
                _ => None,
            };
            row.token(owner)
        });
        Ok(tokens.collect())
    }

    async fn in_time<T>(
        &self,
        answer: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, ApiError> {
        match timeout(CALL_TIMEOUT, answer).await {
            Ok(answered) => answered,
            Err(_) => Err(ApiError::away(format!(
                "{} did not answer within {} s",
                self.host(),
                CALL_TIMEOUT.as_secs()
            ))),
        }
    }

    async fn token_row(&self, vdom: &str, serial: &str) -> Result<Option<TokenRow>, ApiError> {
        if !is_serial(serial) {
            return Ok(None);
        }
        let query = [("format", TOKEN_FORMAT)];
        let row: Option<TokenRow> = self
            .client
            .object(Resource::Tokens, vdom, serial, &query)
            .await?;
        match row {
            Some(row) if row.serial() != serial => Err(ApiError::nonsense(format!(
                "{} was asked for the token {serial} and answered with another one",
                self.host()
            ))),
            row => Ok(row),
        }
    }

    async fn owner(&self, kind: Holder, vdom: &str, user: &str) -> Result<Option<Owner>, ApiError> {
        let query = [("format", OWNER_FORMAT)];
        let row: Option<UserRow> = self.client.object(kind.into(), vdom, user, &query).await?;
        match row {
            // FortiOS may ignore case in user names; anything beyond that is somebody else.
            Some(row) if !row.is_named(user) => Err(ApiError::nonsense(format!(
                "{} was asked for one {} and answered with another one",
                self.host(),
                kind.as_str()
            ))),
            row => Ok(row.map(|row| row.owner(kind))),
        }
    }

    async fn owners_of(&self, vdom: &str, serials: &[&str]) -> Result<Vec<Owner>, ApiError> {
        if serials.is_empty() {
            return Ok(Vec::new());
        }
        let filter = serials
            .iter()
            .map(|serial| format!("fortitoken=={serial}"))
            .collect::<Vec<_>>()
            .join(",");
        let query = [("format", OWNER_FORMAT), ("filter", filter.as_str())];
        let mut owners = Vec::new();
        for kind in [Holder::User, Holder::Administrator] {
            let rows = self
                .client
                .list(kind.into(), vdom, &query, MAX_PENDING, |row: &UserRow| {
                    row.token().is_some_and(|token| serials.contains(&token))
                })
                .await;
            match rows {
                Ok(rows) => owners.extend(rows.into_iter().map(|row| row.owner(kind))),
                // Without sysgrp the holders among administrators stay unknown.
                Err(ApiError::Forbidden { .. }) if kind == Holder::Administrator => {}
                Err(e) => return Err(e),
            }
        }
        Ok(owners)
    }
}

impl From<Holder> for Resource {
    fn from(kind: Holder) -> Self {
        match kind {
            Holder::User => Self::Users,
            Holder::Administrator => Self::Administrators,
        }
    }
}
