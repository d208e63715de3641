// Package fault is the error vocabulary of the domain code. A fault says what
// kind of failure it is, a stable reason, a text that may be shown to the
// caller, and a private cause that may not. It knows nothing of gRPC: the
// errors interceptor in platform/rpc is the one place that turns faults into
// statuses.
package fault

import (
	"errors"
	"fmt"
	"time"
)

// Code is the kind of failure. The set mirrors what callers can act on.
type Code int

const (
	// Internal is a failure that is ours; its cause is never shown.
	Internal Code = iota
	// Invalid is input that can't be accepted as it is.
	Invalid
	// NotFound is a resource that does not exist, or is not visible to the caller.
	NotFound
	// Exists is a create that names something already there.
	Exists
	// Precondition is a request that is well formed but not allowed in the present state.
	Precondition
	// Conflict is a lost race (etag, concurrent change); reading again and retrying may work.
	Conflict
	// Unauthenticated is a missing or wrong credential.
	Unauthenticated
	// Denied is a known caller without the role.
	Denied
	// Exhausted is a limit, queue or rate that is full; RetryAfter says when to come back.
	Exhausted
	// Unavailable is a dependency that does not answer now.
	Unavailable
	// TooLarge is a body or batch over its limit.
	TooLarge
	// Cancelled is work stopped on request.
	Cancelled
)

var codeNames = [...]string{"internal", "invalid", "not_found", "exists", "precondition", "conflict", "unauthenticated", "denied", "exhausted", "unavailable", "too_large", "cancelled"}

// String returns the code's lower-case name.
func (c Code) String() string {
	if int(c) < len(codeNames) {
		return codeNames[c]
	}
	return fmt.Sprintf("code(%d)", int(c))
}

// Violation is one field of a request that can't be accepted.
type Violation struct {
	// Field is the path of the field as the caller wrote it, e.g. "cohort.definition.all_of[1].property.type".
	Field string
	// Description says what is wrong and what would be right.
	Description string
}

// Error is a domain error.
type Error struct {
	Code Code
	// Reason is stable, UPPER_SNAKE_CASE and meant for programs.
	Reason string
	// Public is the text for the caller. It holds no secret and nobody's personal data.
	Public string
	// Violations name the fields at fault.
	Violations []Violation
	// RetryAfter, when positive, is when a retry may work.
	RetryAfter time.Duration
	// Metadata are further public facts (ids, limits).
	Metadata map[string]string
	cause    error
}

// New makes a fault. The text is public: put private detail in Wrap.
func New(code Code, reason, format string, args ...any) *Error {
	return &Error{Code: code, Reason: reason, Public: fmt.Sprintf(format, args...)}
}

// Field makes an Invalid fault for one field.
func Field(field, format string, args ...any) *Error {
	d := fmt.Sprintf(format, args...)
	return &Error{Code: Invalid, Reason: "INVALID_FIELD", Public: field + ": " + d, Violations: []Violation{{Field: field, Description: d}}}
}

// Wrap keeps cause as the private half. It returns the receiver.
func (e *Error) Wrap(cause error) *Error { e.cause = cause; return e }

// With adds a public fact. It returns the receiver.
func (e *Error) With(key, value string) *Error {
	if e.Metadata == nil {
		e.Metadata = map[string]string{}
	}
	e.Metadata[key] = value
	return e
}

// Retry sets when a retry may work. It returns the receiver.
func (e *Error) Retry(after time.Duration) *Error { e.RetryAfter = after; return e }

// Error is the public text only, so that an error that is logged or shown by
// mistake gives nothing away. Cause returns the private half.
func (e *Error) Error() string { return e.Public }

// Unwrap returns the private cause.
func (e *Error) Unwrap() error { return e.cause }

// As returns the fault in err's chain, or nil.
func As(err error) *Error {
	if f, ok := errors.AsType[*Error](err); ok {
		return f
	}
	return nil
}

// CodeOf is the code of the fault in err's chain; Internal when there is none.
func CodeOf(err error) Code {
	if f := As(err); f != nil {
		return f.Code
	}
	return Internal
}

// Is reports whether err is a fault of this code.
func Is(err error, code Code) bool {
	f := As(err)
	return f != nil && f.Code == code
}
