package clevertap

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// Class says what a failed call means for the caller.
type Class int

const (
	// Transient failures may pass: network, timeout, 5xx. Retry with backoff.
	Transient Class = iota
	// Throttled calls were refused for too many in flight (429, 408). Nothing
	// was stored; retry later with fewer in flight.
	Throttled
	// Refused calls will be refused again until a person changes something:
	// credentials, region, access, a path that is not there.
	Refused
	// BadEmail is a custom list's admin address that CleverTap does not accept.
	// It arrives as a 401 and is no statement about the credentials.
	BadEmail
	// StaleURL is an upload URL that is expired or altered: ask for a new one.
	StaleURL
)

// String returns the class's lower-case name.
func (c Class) String() string {
	return [...]string{"transient", "throttled", "refused", "bad_email", "stale_url"}[c]
}

// Error is a call that failed. Its text holds CleverTap's own words without
// the passcode and without anything that looks like an e-mail address.
type Error struct {
	// Class says what to do.
	Class Class
	// Status is the HTTP status; 0 when there was no answer.
	Status int
	// Code is the code of the answer's body, 0 when there was none.
	Code int
	// Message is CleverTap's text, or ours where it gave none.
	Message string
	// Unanswered means the call may have had its effect: it was sent and no
	// answer came.
	Unanswered bool
	cause      error
}

// Error is safe to log and to show.
func (e *Error) Error() string {
	switch {
	case e.Status == 0:
		return "CleverTap: " + e.Message
	case e.Code != 0 && e.Code != e.Status:
		return fmt.Sprintf("CleverTap answered %d, code %d: %s", e.Status, e.Code, e.Message)
	default:
		return fmt.Sprintf("CleverTap answered %d: %s", e.Status, e.Message)
	}
}

// Unwrap returns the private cause. Its text may hold a URL; don't show it.
func (e *Error) Unwrap() error { return e.cause }

// asError is err as an *Error, nil when it is none.
func asError(err error) *Error {
	e, _ := errors.AsType[*Error](err)
	return e
}

var emailLike = regexp.MustCompile(`[^\s"'<>:,;]+@[^\s"'<>,;]+`)

// clean makes a text of an answer fit to be shown: bounded, one line, without
// the passcode and e-mail addresses.
func clean(text string, a Account) string {
	if a.Passcode != "" {
		text = strings.ReplaceAll(text, a.Passcode, "[passcode]")
	}
	text = strings.Join(strings.Fields(text), " ")
	text = emailLike.ReplaceAllString(text, "[e-mail]")
	if len(text) > 300 {
		text = strings.ToValidUTF8(text[:300], "") + "…"
	}
	return text
}
