// Package where is the language of Mixpanel's segmentation expressions
// (https://developer.mixpanel.com/reference/segmentation-expressions): a parser,
// and an evaluator over JSON properties. What an operation can't be done on is
// undefined, never an error, so that a row with odd properties is only left out.
package where

import "fmt"

// Limits of an expression.
const (
	// MaxBytes is the length.
	MaxBytes = 16 << 10
	// MaxDepth is how deep parentheses, not and calls are nested.
	MaxDepth = 100
)

// Scope is where a property is read from.
type Scope uint8

// The scopes.
const (
	// Properties is properties["…"]: of the event in an export, of the profile in a
	// query of profiles.
	Properties Scope = 1
	// Event is event["…"].
	Event Scope = 2
	// User is user["…"], the profile.
	User Scope = 4
)

var scopes = map[string]Scope{"properties": Properties, "event": Event, "user": User}

// Row is what an expression is evaluated on.
type Row interface {
	// Property is the value of a property, undefined when it is not set.
	Property(s Scope, name string) Value
}

// Expr is a parsed expression. It is safe for concurrent use.
type Expr struct {
	root node
	used Scope
}

// Uses says whether the expression reads from a scope.
func (e *Expr) Uses(s Scope) bool { return e.used&s != 0 }

// Match says whether the expression is true for a row.
func (e *Expr) Match(r Row) bool { return e.root(r).isTrue() }

// node computes a value.
type node func(Row) Value

// Parse reads an expression that may read from the scopes allowed. The error is
// an *Error.
func Parse(src string, allowed Scope) (*Expr, error) {
	if len(src) > MaxBytes {
		return nil, &Error{Position: 1, Text: fmt.Sprintf("the expression has %d bytes, at most %d are allowed", len(src), MaxBytes)}
	}
	p := &parser{lex: lexer{src: src}, allowed: allowed}
	if err := p.advance(); err != nil {
		return nil, err
	}
	root, err := p.or()
	if err != nil {
		return nil, err
	}
	if p.tok.kind != end {
		return nil, p.fail("want an operator or the end")
	}
	return &Expr{root, p.used}, nil
}
