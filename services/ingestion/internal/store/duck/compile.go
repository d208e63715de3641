package duck

import (
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/leaf"
)

// builder collects a query's arguments.
type builder struct {
	args []any
	asOf time.Time
}

func (b *builder) arg(v any) string {
	b.args = append(b.args, v)
	return fmt.Sprintf("$%d", len(b.args))
}

// bitmap wraps a query of column u (user numbers) so that it answers 64 users a
// row: numbers are dense, so a big set comes back in few rows.
func bitmap(users string) string {
	return `SELECT u >> 6, bit_or(1::UBIGINT << (u & 63)) FROM (` + users + `) GROUP BY 1`
}

// from selects columns of the events e of some names in a span; u is their user.
func (b *builder) from(projectID int64, cols string, events []string, span leaf.Span, linked bool) string {
	p := b.arg(projectID)
	user, join := "e.user_no", ""
	if linked {
		user, join = "coalesce(l.canonical, e.user_no)", " LEFT JOIN (SELECT user_no, canonical FROM links WHERE project_id="+p+") l ON l.user_no=e.user_no"
	}
	names := make([]string, len(events))
	for i, n := range events {
		names[i] = b.arg(n)
	}
	return "SELECT " + user + " AS u" + cols + " FROM events e" + join + " WHERE e.project_id=" + p + " AND e.user_no<>0 AND e.name IN (" + strings.Join(names, ",") +
		") AND e.time_ms>=" + b.arg(span.From) + " AND e.time_ms<" + b.arg(span.To)
}

// holds is the condition that all filters hold of event e.
func (b *builder) holds(filters []leaf.Filter) string {
	conds := make([]string, len(filters))
	for i := range filters {
		conds[i] = b.eventFilter(&filters[i])
	}
	if len(conds) == 0 {
		return "true"
	}
	return strings.Join(conds, " AND ")
}

// behavior compiles a behavior leaf to a query of words of users.
func (b *builder) behavior(projectID int64, l *leaf.Behavior, linked bool) string {
	if l.FirstTime {
		// Events after the span can't be earlier than one in it.
		all := b.from(projectID, ", e.time_ms AS t, ("+b.holds(l.Filters)+") AS ok", l.Events, leaf.Span{From: math.MinInt64, To: l.Span.To}, linked)
		return bitmap("SELECT u FROM (" + all + ") GROUP BY u HAVING min(t)>=" + b.arg(l.Span.From) + " AND min(t)=min(t) FILTER (WHERE ok)")
	}
	cols := ""
	switch l.Measure {
	case leaf.Sum, leaf.Average, leaf.Min, leaf.Max:
		cols += ", " + number(b.property("e.props", l.Property)) + " AS x"
	case leaf.Distinct:
		// The JSON text tells "1" from 1, and null is no value.
		cols += ", CASE WHEN json_type(" + b.property("e.props", l.Property) + ") <> 'NULL' THEN " + b.property("e.props", l.Property) + "::VARCHAR END AS x"
	case leaf.DistinctDays:
		cols += fmt.Sprintf(", e.time_ms // %d AS x", 86_400_000)
	default: // counting needs no value
	}
	from := b.from(projectID, cols, l.Events, l.Span, linked) + " AND " + b.holds(l.Filters)
	if l.Measure == leaf.Count && (l.Comparator == leaf.GreaterOrEqual && l.Threshold <= 1 || l.Comparator == leaf.Greater && l.Threshold < 1) {
		return bitmap(from) // did it at all: no need to count
	}
	measure := map[leaf.Measure]string{
		leaf.Count: "count(*)", leaf.Sum: "sum(x)", leaf.Average: "avg(x)", leaf.Min: "min(x)", leaf.Max: "max(x)",
		leaf.Distinct: "count(DISTINCT x)", leaf.DistinctDays: "count(DISTINCT x)",
	}[l.Measure]
	return bitmap("SELECT u FROM (" + from + ") GROUP BY u HAVING " + b.compare(measure, l.Comparator, l.Threshold, l.High))
}

// sequence compiles a sequence leaf to a query of words of users. c<i> has, for each
// event that can be the first step, its time a and the earliest time t at which the
// steps up to i can be done after it.
func (b *builder) sequence(projectID int64, l *leaf.Sequence, linked bool) string {
	var with []string
	step := func(i int, from int64, to int64) string {
		name := fmt.Sprintf("s%d", i)
		s := &l.Steps[i]
		with = append(with, name+" AS ("+b.from(projectID, ", e.time_ms AS t", s.Events, leaf.Span{From: from, To: to}, linked)+" AND "+b.holds(s.Filters)+")")
		return name
	}
	var limit string
	if l.Within > 0 {
		limit = "(a+" + b.arg(l.Within.Milliseconds()) + ")"
	} else {
		limit = b.arg(l.AsOfMS)
	}
	last := len(l.Steps) - 1
	chain := "SELECT DISTINCT u, t AS a, t FROM " + step(0, l.Span.From, l.Span.To)
	if l.Steps[last].DidNot && l.Within > 0 {
		chain += " WHERE " + limit + "<=" + b.arg(l.AsOfMS) // later ones may still do it
	}
	prev := ""
	for i := 1; i <= last && !l.Steps[i].DidNot; i++ {
		prev = step(i, l.Span.From, l.AsOfMS+1)
		with = append(with, fmt.Sprintf("c%d AS (%s)", i-1, chain))
		chain = fmt.Sprintf("SELECT c.u, c.a, s.t FROM c%d c ASOF JOIN %s s ON c.u=s.u AND c.t<s.t WHERE s.t<=%s", i-1, prev, limit)
	}
	if l.Steps[last].DidNot {
		if prev != "" { // the latest of the step before leaves the least time
			with = append(with, "early AS ("+chain+")")
			chain = "SELECT c.u, c.a, s.t FROM (SELECT u, a, " + limit + " AS until FROM early) c ASOF JOIN " + prev + " s ON c.u=s.u AND c.until>=s.t"
		}
		with = append(with, "done AS ("+chain+")")
		not := step(last, l.Span.From, l.AsOfMS+1)
		chain = "SELECT c.u FROM done c ASOF LEFT JOIN " + not + " s ON c.u=s.u AND c.t<s.t WHERE s.t IS NULL OR s.t>" + limit
	}
	return "WITH " + strings.Join(with, ", ") + " " + bitmap("SELECT u FROM ("+chain+")")
}

func (b *builder) compare(x string, c leaf.Comparator, threshold, high float64) string {
	if c == leaf.Between {
		return x + " BETWEEN " + b.arg(threshold) + " AND " + b.arg(high)
	}
	op := map[leaf.Comparator]string{leaf.Equal: "=", leaf.NotEqual: "<>", leaf.Greater: ">", leaf.GreaterOrEqual: ">=", leaf.Less: "<", leaf.LessOrEqual: "<="}[c]
	return x + op + b.arg(threshold)
}

// property is the JSON value of a property, as a JSON pointer: no character of a
// name is special in it but ~ and /.
func (b *builder) property(props, name string) string {
	pointer := "/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(name)
	return "json_extract(" + props + ", '" + strings.ReplaceAll(pointer, "'", "''") + "')"
}

func number(j string) string {
	return "(CASE WHEN json_type(" + j + ") IN ('BIGINT','UBIGINT','HUGEINT','DOUBLE') THEN TRY_CAST(" + j + " AS DOUBLE) END)"
}

func text(j string) string {
	return "(CASE WHEN json_type(" + j + ")='VARCHAR' THEN " + j + "->>'$' END)"
}

// when is the time in Unix milliseconds of a text that looks like one, by the
// pattern of ParseTime, so that events and profiles agree.
func when(j string) string {
	t := text(j)
	return "(CASE WHEN " + t + " SIMILAR TO '" + timePattern + "' THEN epoch_ms(TRY_CAST(" + t + " AS TIMESTAMPTZ)) END)"
}

// eventFilter is a condition on an event's property. A value of another type, or
// none, makes it false.
func (b *builder) eventFilter(f *leaf.Filter) string {
	j := b.property("e.props", f.Property)
	set := "coalesce(json_type(" + j + "), 'NULL') <> 'NULL'"
	switch {
	case f.Op == leaf.IsSet:
		return set
	case f.Op == leaf.IsNotSet:
		return "NOT (" + set + ")"
	case f.Type == leaf.List:
		var conds []string
		for _, o := range f.Operands {
			of := leaf.Filter{Type: o.Type, Op: leaf.Equals, Operands: []leaf.Operand{o}}
			conds = append(conds, "len(list_filter(json_extract("+j+", '$[*]'), lambda x: coalesce("+b.typed(&of, "x")+", false)))>0")
		}
		return "(json_type(" + j + ")='ARRAY' AND (" + strings.Join(conds, map[bool]string{true: " AND ", false: " OR "}[f.Op == leaf.AllOf]) + "))"
	default:
		return "coalesce(" + b.typed(f, j) + ", false)"
	}
}

func (b *builder) typed(f *leaf.Filter, j string) string {
	switch f.Type {
	case leaf.String:
		return b.texts(f, text(j))
	case leaf.Number:
		return b.numbers(f, number(j))
	case leaf.Bool:
		return b.numbers(f, "(CASE json_type("+j+") WHEN 'BOOLEAN' THEN "+j+"::BOOLEAN::INTEGER END)")
	default:
		return b.numbers(f, when(j))
	}
}

func (b *builder) texts(f *leaf.Filter, x string) string {
	var conds []string
	for _, o := range f.Operands {
		switch f.Op {
		case leaf.Equals, leaf.NotEquals:
			conds = append(conds, x+"="+b.arg(o.Text))
		case leaf.Contains, leaf.NotContains:
			conds = append(conds, "contains(lower("+x+"), lower("+b.arg(o.Text)+"))")
		case leaf.StartsWith:
			conds = append(conds, "starts_with("+x+", "+b.arg(o.Text)+")")
		case leaf.EndsWith:
			conds = append(conds, "suffix("+x+", "+b.arg(o.Text)+")")
		default: // Validate lets no other operator through
			conds = append(conds, "false")
		}
	}
	any := "(" + strings.Join(conds, " OR ") + ")"
	if f.Op == leaf.NotEquals || f.Op == leaf.NotContains {
		return "(NOT " + any + ")" // null stays null: no text, no match
	}
	return any
}

// numbers compares numbers, booleans as 0 and 1, and times in milliseconds.
func (b *builder) numbers(f *leaf.Filter, x string) string {
	value := func(i int) string {
		o := f.Operands[i]
		switch o.Type {
		case leaf.Datetime:
			return b.arg(o.TimeMS)
		case leaf.Bool:
			if o.Flag {
				return "1"
			}
			return "0"
		default:
			return b.arg(o.Num)
		}
	}
	switch f.Op {
	case leaf.GreaterThan:
		return x + ">" + value(0)
	case leaf.AtLeast:
		return x + ">=" + value(0)
	case leaf.LessThan:
		return x + "<" + value(0)
	case leaf.AtMost:
		return x + "<=" + value(0)
	case leaf.InRange:
		return x + " BETWEEN " + value(0) + " AND " + value(1)
	case leaf.WithinLast:
		return x + " BETWEEN " + b.arg(b.asOf.Add(-f.Within).UnixMilli()) + " AND " + b.arg(b.asOf.UnixMilli())
	default: // equal to one of the operands, or to none
	}
	conds := make([]string, len(f.Operands))
	for i := range f.Operands {
		conds[i] = x + "=" + value(i)
	}
	any := "(" + strings.Join(conds, " OR ") + ")"
	if f.Op == leaf.NotEquals {
		return "(NOT " + any + ")"
	}
	return any
}

// profileFilter compiles a property leaf other than IsNotSet to a query of words
// of users.
func (b *builder) profileFilter(projectID int64, f *leaf.Filter) string {
	from := "SELECT user_no AS u FROM projection WHERE project_id=" + b.arg(projectID) + " AND property=" + b.arg(f.Property) + " AND "
	if f.Op == leaf.IsSet {
		return bitmap(from + fmt.Sprintf("kind<%d", kindElement))
	}
	if f.Type != leaf.List {
		return bitmap(from + b.projected(f, 0))
	}
	var conds []string
	seen := map[leaf.Operand]bool{}
	for _, o := range f.Operands {
		if seen[o] {
			continue
		}
		seen[o] = true
		conds = append(conds, b.projected(&leaf.Filter{Type: o.Type, Op: leaf.Equals, Operands: []leaf.Operand{o}}, kindElement))
	}
	anyOf := "(" + strings.Join(conds, " OR ") + ")"
	if f.Op == leaf.AnyOf {
		return bitmap(from + anyOf)
	}
	// Every operand must be met by some element.
	having := make([]string, len(conds))
	for i, c := range conds {
		having[i] = "bool_or(coalesce(" + c + ", false))"
	}
	return bitmap(from + anyOf + " GROUP BY user_no HAVING " + strings.Join(having, " AND "))
}

// projected is a condition on one projection row of a value, or of an element.
func (b *builder) projected(f *leaf.Filter, base int) string {
	switch f.Type {
	case leaf.String:
		return fmt.Sprintf("(kind=%d AND %s)", base+kindString, b.texts(f, "str"))
	case leaf.Number:
		return fmt.Sprintf("(kind=%d AND %s)", base+kindNumber, b.numbers(f, "num"))
	case leaf.Bool:
		return fmt.Sprintf("(kind=%d AND %s)", base+kindBool, b.numbers(f, "num"))
	default:
		return fmt.Sprintf("(kind=%d AND ts IS NOT NULL AND %s)", base+kindString, b.numbers(f, "ts"))
	}
}
