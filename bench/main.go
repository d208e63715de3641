// Command bench measures cohortbridge against the goals of its design and
// prints a table. It starts real processes and talks to them as users do.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// figure is one line of the result.
type figure struct {
	ID      string  `json:"id"`
	Value   float64 `json:"value"`
	Unit    string  `json:"unit"`
	Ratio   float64 `json:"ratio"`
	Against string  `json:"against"`
	Note    string  `json:"note,omitempty"`
}

// bench is a run of the benchmarks.
type bench struct {
	binary  string
	dir     string
	soakFor time.Duration
	scale   float64
	figures []figure
}

func (b *bench) add(f figure) {
	b.figures = append(b.figures, f)
	_, _ = fmt.Fprintf(os.Stderr, "%s: %.4g %s, %.3g of %s %s\n", f.ID, f.Value, f.Unit, f.Ratio, f.Against, f.Note) // progress
}

// n is a size, scaled.
func (b *bench) n(size int) int { return max(2000, int(float64(size)*b.scale)) }

func median[T ~int | ~int64 | ~float64](v []T) T {
	s := slices.Sorted(slices.Values(v))
	return s[len(s)/2]
}

func main() {
	if err := run(context.Background()); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	b := &bench{}
	out := flag.String("out", "results.json", "file for the figures as JSON")
	only := flag.String("only", "", "comma-separated parts: start, ingest, cohort, month, full, sync, soak; default all but soak")
	flag.DurationVar(&b.soakFor, "soak", 10*time.Minute, "how long the part soak imports")
	flag.StringVar(&b.binary, "binary", "../bin/cohortbridge", "the binary to measure")
	flag.StringVar(&b.dir, "dir", "", "folder for the data of the systems measured; default the system's temporary folder")
	flag.Float64Var(&b.scale, "scale", 1, "share of the full sizes, to try the benchmarks out")
	flag.Parse()
	for _, part := range []struct {
		name string
		f    func(context.Context) error
	}{{"start", b.start}, {"ingest", b.ingest}, {"cohort", b.cohortPart}, {"month", b.month}, {"full", b.full}, {"sync", b.sync}, {"soak", b.soak}} {
		if *only == "" && part.name == "soak" || *only != "" && !slices.Contains(strings.Split(*only, ","), part.name) {
			continue
		}
		if err := part.f(ctx); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "id\tvalue\tunit\tratio\tagainst\tnote")
	for _, f := range b.figures {
		_, _ = fmt.Fprintf(w, "%s\t%.5g\t%s\t%.3g\t%s\t%s\n", f.ID, f.Value, f.Unit, f.Ratio, f.Against, f.Note)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	j, err := json.MarshalIndent(map[string]any{"figures": b.figures}, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(*out, append(j, '\n'), 0o600)
}
