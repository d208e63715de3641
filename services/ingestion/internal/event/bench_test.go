package event_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/event"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/project"
)

// batch is an array of n events of about 530 bytes with 20 properties.
func batch(n int) []byte {
	b := []byte{'['}
	for i := range n {
		if i > 0 {
			b = append(b, ',')
		}
		b = fmt.Appendf(b, `{"event":"Product Viewed","properties":{"time":17%08d,"distinct_id":"user-%d","$insert_id":"b-%x","$city":"Bengaluru","$region":"Karnataka","mp_country_code":"IN","$os":"Android","$os_version":"14","$browser":"Chrome","$browser_version":126,"$screen_height":2400,"$screen_width":1080,"mp_lib":"android","$lib_version":"7.5.2","$app_version_string":"5.%d.0","$model":"Pixel 8","$manufacturer":"Google","$wifi":true,"price":%d.5,"currency":"INR","sku":"SKU-%d","session_id":"%x","quantity":2}}`,
			i, i%500, i, i%30, i%5000, i, i*7919)
	}
	return append(b, ']')
}

// BenchmarkDecode reads and judges a full batch: what the hot path does with a
// body before it meets a store.
func BenchmarkDecode(b *testing.B) {
	body := batch(event.MaxBatch)
	d := event.NewDecoder(len(body))
	evs := make([]event.Event, event.MaxBatch)
	p := &project.Project{ID: 1, Token: "t"}
	rules := event.Rules{Endpoint: event.Import, Strict: true, NowMS: 1_900_000_000_000, System: project.Simplified}
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		d.Reset()
		dec := jsontext.NewDecoder(bytes.NewBuffer(body), event.Options...)
		if _, err := dec.ReadToken(); err != nil {
			b.Fatal(err)
		}
		for i := range evs {
			evs[i].Reset(i)
			if f, err := d.Decode(dec, &evs[i]); f != nil || err != nil {
				b.Fatal(f, err)
			}
			evs[i].Project = p
			if f := evs[i].Finish(&rules); f != nil {
				b.Fatal(f)
			}
		}
	}
}
