package telemetry_test

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"testing"

	"go.opentelemetry.io/otel"

	"github.com/cohortbridge/cohortbridge/platform/telemetry"
)

func TestLogLinesCarryTheTraceAndTraceIdsExistWithoutAnExporter(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "")
	stop, err := telemetry.SetupTracing(context.Background(), "svc", "v")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stop(context.Background()) }()
	var out bytes.Buffer
	old := slog.Default()
	defer slog.SetDefault(old)
	telemetry.SetupLogging(&out, slog.LevelInfo)
	ctx, span := otel.Tracer("t").Start(context.Background(), "x")
	slog.With("a", 1).InfoContext(ctx, "hello")
	span.End()
	var line map[string]any
	if err := json.Unmarshal(out.Bytes(), &line); err != nil {
		t.Fatal(err)
	}
	sc := span.SpanContext()
	if !sc.IsValid() || line["trace_id"] != sc.TraceID().String() || line["span_id"] != sc.SpanID().String() || line["a"] != 1.0 {
		t.Fatalf("line %v, span %v", line, sc)
	}
}
