// The client of the bench for Go's net/http: the default Transport, allowed to keep as many idle connections
// as there are workers. The same load as client_driver.py makes, and the same line of JSON at the end.
//
// Usage: go-client PORT CASE WORKERS SECONDS
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const size = 100 << 20

var pong = []byte("pong")

// A phase is one run of the load; requests begun by its end are finished, and count.
type phase struct {
	over      atomic.Bool
	requests  atomic.Int64
	latencies []time.Duration
}

func main() {
	if len(os.Args) != 5 {
		log.Fatal("usage: go-client PORT CASE WORKERS SECONDS")
	}
	base, testCase := "http://127.0.0.1:"+os.Args[1], os.Args[2]
	workers := check(strconv.Atoi(os.Args[3]))
	seconds := check(strconv.ParseFloat(os.Args[4], 64))

	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = workers
	client := &http.Client{Transport: transport}

	upload := make([]byte, 64<<10)
	for i := range upload {
		upload[i] = byte(i)
	}
	// As large as io.Copy's. Larger ones cost more: they fall out of the processor's nearer caches; io.Discard,
	// to which io.Copy would be the shorter way, reads in steps of 8 KiB.
	buffer := make([]byte, 32<<10)
	get := func() error {
		response, err := client.Get(base + "/ping")
		return answered(response, err)
	}
	post := func() error {
		response, err := client.Post(base+"/upload", "application/octet-stream", bytes.NewReader(upload))
		return answered(response, err)
	}
	download := func() error {
		response, err := client.Get(base + "/download")
		if err != nil {
			return err
		}
		defer response.Body.Close()
		total := 0
		for err == nil {
			var n int
			n, err = response.Body.Read(buffer)
			total += n
		}
		if err != io.EOF || response.StatusCode != 200 || total != size {
			return fmt.Errorf("status %d, %d bytes, %w", response.StatusCode, total, err)
		}
		return nil
	}
	ask, known := map[string]func() error{
		"get-64": get, "get-1": get, "post-64k": post, "download": download,
	}[testCase]
	if !known {
		log.Fatalf("no such case: %s", testCase)
	}
	if testCase == "download" {
		must(get()) // what a client makes with its first request is no growth
	}

	begun := status("VmRSS")
	must(os.WriteFile("/proc/self/clear_refs", []byte("5"), 0)) // VmHWM begins anew, see proc(5)
	load(ask, workers, time.Duration(seconds/3*float64(time.Second)), false)
	runtime.GC()
	start, cpu := time.Now(), cpuSeconds()
	done := load(ask, workers, time.Duration(seconds*float64(time.Second)), testCase == "get-1")
	result := map[string]float64{
		"requests":    float64(done.requests.Load()),
		"seconds":     time.Since(start).Seconds(),
		"cpu_seconds": cpuSeconds() - cpu,
	}
	if n := len(done.latencies); n > 0 {
		slices.Sort(done.latencies)
		result["p50_us"] = float64(done.latencies[n/2]) / 1000
		result["p99_us"] = float64(done.latencies[n*99/100]) / 1000
	}
	peak := status("VmHWM")
	result["peak_mib"] = float64(peak) / 1024
	result["grown_mib"] = float64(max(0, peak-begun)) / 1024
	must(json.NewEncoder(os.Stdout).Encode(result))
}

// load lets workers ask one request after the other until the time is over.
func load(ask func() error, workers int, duration time.Duration, timed bool) *phase {
	var current phase
	var group sync.WaitGroup
	timer := time.AfterFunc(duration, func() { current.over.Store(true) })
	defer timer.Stop()
	for range workers {
		group.Go(func() {
			for !current.over.Load() {
				if timed { // one worker only
					begin := time.Now()
					must(ask())
					current.latencies = append(current.latencies, time.Since(begin))
				} else {
					must(ask())
				}
				current.requests.Add(1)
			}
		})
	}
	group.Wait()
	return &current
}

// answered reads a small answer to its end and checks it.
func answered(response *http.Response, err error) error {
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode != 200 || !bytes.Equal(body, pong) {
		return errors.New(response.Status + " " + string(body[:min(len(body), 60)]))
	}
	return nil
}

// cpuSeconds is the user and system time of this process.
func cpuSeconds() float64 {
	var usage syscall.Rusage
	must(syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return float64(usage.Utime.Nano()+usage.Stime.Nano()) / 1e9
}

// status is a line of /proc/self/status that is given in KiB.
func status(name string) int {
	for line := range strings.Lines(string(check(os.ReadFile("/proc/self/status")))) {
		if rest, found := strings.CutPrefix(line, name+":"); found {
			return check(strconv.Atoi(strings.Fields(rest)[0]))
		}
	}
	log.Fatalf("no %s", name)
	return 0
}

func check[T any](value T, err error) T {
	must(err)
	return value
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
