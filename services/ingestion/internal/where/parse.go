package where

import (
	"math"
	"slices"
)

type parser struct {
	lex     lexer
	tok     token
	depth   int
	allowed Scope
	used    Scope
}

func (p *parser) advance() (err error) {
	p.tok, err = p.lex.next()
	return err
}

func (p *parser) fail(format string, args ...any) error {
	return p.lex.fail(p.tok.at, format, args...)
}

// is says whether the token is a word or symbol, and which.
func (p *parser) is(list ...string) bool {
	return (p.tok.kind == word || p.tok.kind == symbol) && slices.Contains(list, p.tok.s)
}

func (p *parser) expect(s string) error {
	if !p.is(s) {
		return p.fail("want %s", s)
	}
	return p.advance()
}

// deeper bounds the recursion; call the result when the level ends.
func (p *parser) deeper() (func(), error) {
	if p.depth++; p.depth > MaxDepth {
		return nil, p.fail("nested deeper than %d levels", MaxDepth)
	}
	return func() { p.depth-- }, nil
}

// chain reads operands with operators of one level between them. The nodes are
// kept in a list, so that a long chain is no deep recursion.
func (p *parser) chain(operand func() (node, error), join func(op string, a, b Value) Value, ops ...string) (node, error) {
	first, err := operand()
	if err != nil || !p.is(ops...) {
		return first, err
	}
	var names []string
	var rest []node
	for p.is(ops...) {
		names = append(names, p.tok.s)
		if err := p.advance(); err != nil {
			return nil, err
		}
		n, err := operand()
		if err != nil {
			return nil, err
		}
		rest = append(rest, n)
	}
	return func(r Row) Value {
		v := first(r)
		for i, n := range rest {
			v = join(names[i], v, n(r))
		}
		return v
	}, nil
}

// logical joins with and or or. An operand that is no boolean counts as false:
// its type is the row's affair.
func logical(op string, a, b Value) Value {
	if op == "and" {
		return Bool(a.isTrue() && b.isTrue())
	}
	return Bool(a.isTrue() || b.isTrue())
}

func (p *parser) or() (node, error) {
	done, err := p.deeper()
	if err != nil {
		return nil, err
	}
	defer done()
	return p.chain(p.and, logical, "or")
}

func (p *parser) and() (node, error) { return p.chain(p.not, logical, "and") }

func (p *parser) not() (node, error) {
	if !p.is("not") {
		return p.comparison()
	}
	done, err := p.deeper()
	if err != nil {
		return nil, err
	}
	defer done()
	if err := p.advance(); err != nil {
		return nil, err
	}
	n, err := p.not()
	if err != nil {
		return nil, err
	}
	return func(r Row) Value {
		switch v := n(r); v.kind {
		case Boolean:
			return Bool(!v.flag)
		case Undefined:
			return Bool(true)
		default:
			return Value{}
		}
	}, nil
}

func (p *parser) comparison() (node, error) {
	return p.chain(p.sum, relation, "==", "!=", "<", "<=", ">", ">=", "in")
}

func relation(op string, a, b Value) Value {
	switch op {
	case "==":
		return Bool(equal(a, b))
	case "!=":
		return Bool(!equal(a, b))
	case "in":
		return contains(a, b)
	}
	sign, ok := compare(a, b)
	if !ok {
		return Value{}
	}
	switch op {
	case "<":
		return Bool(sign < 0)
	case "<=":
		return Bool(sign <= 0)
	case ">":
		return Bool(sign > 0)
	default:
		return Bool(sign >= 0)
	}
}

func (p *parser) sum() (node, error)     { return p.chain(p.product, arithmetic, "+", "-") }
func (p *parser) product() (node, error) { return p.chain(p.negation, arithmetic, "*", "/", "%") }

func (p *parser) negation() (node, error) {
	if !p.is("-") {
		return p.primary()
	}
	done, err := p.deeper()
	if err != nil {
		return nil, err
	}
	defer done()
	if err := p.advance(); err != nil {
		return nil, err
	}
	n, err := p.negation()
	if err != nil {
		return nil, err
	}
	return func(r Row) Value { return onNumber(n(r), func(f float64) float64 { return -f }) }, nil
}

// functions are what is called with one value in parentheses.
var functions = map[string]func(Value) Value{
	"boolean": toBoolean, "number": toNumber, "string": toString, "datetime": toDatetime,
	"defined": func(v Value) Value { return Bool(v.defined()) },
	"floor":   func(v Value) Value { return onNumber(v, math.Floor) },
	"ceil":    func(v Value) Value { return onNumber(v, math.Ceil) },
	"round":   func(v Value) Value { return onNumber(v, math.Round) },
}

const wantValue = `want a value: properties["…"], user["…"], event["…"], a text in quotes, a number, true, false, a list in [], or a function`

func (p *parser) primary() (node, error) {
	t := p.tok
	switch t.kind {
	case text:
		return constant(Text(t.s)), p.advance()
	case number:
		return constant(Num(t.num)), p.advance()
	case symbol:
		switch t.s {
		case "(":
			return p.parenthesis()
		case "[":
			return p.list()
		}
	case word:
		if s, ok := scopes[t.s]; ok {
			return p.property(s)
		}
		if f, ok := functions[t.s]; ok {
			return p.call(f, t.s == "datetime")
		}
		if t.s == "true" || t.s == "false" {
			return constant(Bool(t.s == "true")), p.advance()
		}
	default:
	}
	return nil, p.fail(wantValue)
}

func constant(v Value) node { return func(Row) Value { return v } }

func (p *parser) parenthesis() (node, error) {
	if err := p.advance(); err != nil {
		return nil, err
	}
	n, err := p.or()
	if err != nil {
		return nil, err
	}
	return n, p.expect(")")
}

func (p *parser) property(s Scope) (node, error) {
	if s&p.allowed == 0 {
		return nil, p.fail("this has no meaning here: profiles have no event")
	}
	p.used |= s
	if err := p.advance(); err != nil {
		return nil, err
	}
	if err := p.expect("["); err != nil {
		return nil, err
	}
	if p.tok.kind != text {
		return nil, p.fail("want the name of a property, in quotes")
	}
	name := p.tok.s
	if err := p.advance(); err != nil {
		return nil, err
	}
	return func(r Row) Value { return r.Property(s, name) }, p.expect("]")
}

func (p *parser) call(f func(Value) Value, isDate bool) (node, error) {
	if err := p.advance(); err != nil {
		return nil, err
	}
	if !p.is("(") {
		return nil, p.fail("want ( after the function")
	}
	if err := p.advance(); err != nil {
		return nil, err
	}
	if isDate && p.tok.kind == text {
		// A date that can't be read is better said now than found out by an empty answer.
		if _, ok := isoTime(p.tok.s); !ok {
			return nil, p.fail("want a date, yyyy-mm-dd or yyyy-mm-ddThh:mm:ss")
		}
	}
	n, err := p.or()
	if err != nil {
		return nil, err
	}
	return func(r Row) Value { return f(n(r)) }, p.expect(")")
}

func (p *parser) list() (node, error) {
	if err := p.advance(); err != nil {
		return nil, err
	}
	var items []node
	for !p.is("]") {
		if len(items) > 0 {
			if !p.is(",") {
				return nil, p.fail("want , or ]")
			}
			if err := p.advance(); err != nil {
				return nil, err
			}
		}
		n, err := p.or()
		if err != nil {
			return nil, err
		}
		items = append(items, n)
	}
	return func(r Row) Value {
		v := Value{kind: List, list: make([]Value, len(items))}
		for i, n := range items {
			v.list[i] = n(r)
		}
		return v
	}, p.advance()
}
